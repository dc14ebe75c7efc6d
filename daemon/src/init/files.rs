//! Writes several files, all or none.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::plan::{Content, Planned};

/// Files that are written and not yet in their places. Dropping it removes every trace of them.
#[derive(Debug)]
pub(super) struct Drafts {
    files: Vec<Draft>,
    made_dirs: Vec<PathBuf>,
    is_done: bool,
}

#[derive(Debug)]
struct Draft {
    target: PathBuf,
    /// The new content, under a hidden name in the same directory.
    temporary: PathBuf,
    /// Another name of the file that is replaced.
    previous: PathBuf,
    is_secret: bool,
    is_placed: bool,
}

impl Drafts {
    /// Writes all files under temporary names.
    pub(super) fn write(files: &[Planned]) -> Result<Self, String> {
        let mut drafts = Self { files: Vec::new(), made_dirs: Vec::new(), is_done: false };
        for file in files {
            let written = drafts.write_one(file);
            written.map_err(|error| format!("cannot write {}: {error}", file.path.display()))?;
        }
        Ok(drafts)
    }

    fn write_one(&mut self, file: &Planned) -> io::Result<()> {
        let (text, mode, dir_mode) = match &file.content {
            Content::Config(text) | Content::Unit(text) => (text.as_str(), 0o644, 0o755),
            Content::Secret(secret) => (secret.expose(), 0o400, 0o700),
        };
        let (Some(dir), Some(name)) = (file.path.parent(), file.path.file_name()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        self.make_dir(dir, dir_mode)?;
        let hidden = |suffix: &str| dir.join(format!(".{}.{suffix}", name.display()));
        let (temporary, previous) = (hidden("new"), hidden("old"));
        // A program that was killed may have left them.
        remove(&temporary)?;
        remove(&previous)?;
        let is_secret = matches!(file.content, Content::Secret(_));
        // Nobody but the owner can open it before it has its mode.
        let mut draft = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let target = file.path.clone();
        self.files.push(Draft { target, temporary, previous, is_secret, is_placed: false });
        draft.write_all(text.as_bytes())?;
        draft.set_permissions(Permissions::from_mode(mode))?;
        draft.sync_all()
    }

    /// Makes a directory of this mode, whatever the umask is: the daemon's user reads the configuration.
    fn make_dir(&mut self, dir: &Path, mode: u32) -> io::Result<()> {
        if let Err(error) = DirBuilder::new().mode(0o700).create(dir) {
            return if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) };
        }
        self.made_dirs.push(dir.to_owned());
        // The owner of the directory above may have put a link in its place.
        let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
        opened.set_permissions(Permissions::from_mode(mode))
    }

    /// The file with the secret, before it is in its place.
    pub(super) fn secret(&self) -> Option<&Path> {
        self.files.iter().find(|draft| draft.is_secret).map(|draft| draft.temporary.as_path())
    }

    /// Gives all files their names. If one of them cannot have it, none has.
    pub(super) fn place(mut self, may_replace: bool) -> Result<(), String> {
        for draft in &mut self.files {
            let placed = draft.place(may_replace);
            placed.map_err(|error| format!("cannot write {}: {error}", draft.target.display()))?;
        }
        self.is_done = true;
        Ok(())
    }
}

impl Draft {
    fn place(&mut self, may_replace: bool) -> io::Result<()> {
        if may_replace {
            match fs::hard_link(&self.target, &self.previous) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => (),
            }
            fs::rename(&self.temporary, &self.target)?;
        } else {
            // Unlike a rename, it replaces nothing.
            fs::hard_link(&self.temporary, &self.target)?;
        }
        self.is_placed = true;
        Ok(())
    }

    fn undo(&self) {
        if self.is_placed && fs::rename(&self.previous, &self.target).is_err() {
            let _ = fs::remove_file(&self.target);
        }
    }
}

impl Drop for Drafts {
    fn drop(&mut self) {
        for draft in self.files.iter().rev() {
            if !self.is_done {
                draft.undo();
            }
            let _ = (remove(&draft.temporary), remove(&draft.previous));
        }
        if !self.is_done {
            self.made_dirs.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokend_protocol::Secret;

    use super::*;

    fn planned(dir: &Path, names: &[&str]) -> Vec<Planned> {
        let file = |name: &&str| Planned {
            path: dir.join(name),
            content: if name.ends_with("secret") {
                Content::Secret(Secret::from("s".to_owned()))
            } else {
                Content::Config((*name).to_owned())
            },
        };
        names.iter().map(file).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn all_files_appear_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let drafts = Drafts::write(&planned(dir.path(), &["a.secret", "c.d/b"])).unwrap();
        assert!(drafts.secret().is_some_and(Path::exists));
        assert_eq!(names(dir.path()), [".a.secret.new", "c.d"], "nothing has its name yet");
        drafts.place(false).unwrap();
        assert_eq!(names(dir.path()), ["a.secret", "c.d"]);
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(["a.secret", "c.d", "c.d/b"].map(mode), [0o400, 0o755, 0o644]);
        assert_eq!(names(&dir.path().join("c.d")), ["b"]);
    }

    #[test]
    fn if_one_file_cannot_be_placed_nothing_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b"), "old").unwrap();
        let drafts = Drafts::write(&planned(dir.path(), &["x.d/a", "b"])).unwrap();
        let error = drafts.place(false).unwrap_err();
        assert!(error.contains("/b: File exists"), "{error}");
        assert_eq!(names(dir.path()), ["b"]);
        // A directory in the place of the last file.
        fs::create_dir(dir.path().join("z")).unwrap();
        Drafts::write(&planned(dir.path(), &["b", "z"])).unwrap().place(true).unwrap_err();
        assert_eq!(
            (names(dir.path()), fs::read_to_string(dir.path().join("b")).unwrap()),
            (vec!["b".to_owned(), "z".to_owned()], "old".to_owned())
        );
        Drafts::write(&planned(dir.path(), &["b"])).unwrap().place(true).unwrap();
        assert_eq!(
            (names(dir.path()), fs::read_to_string(dir.path().join("b")).unwrap()),
            (vec!["b".to_owned(), "z".to_owned()], "b".to_owned())
        );
    }

    #[test]
    fn what_is_not_placed_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        drop(Drafts::write(&planned(dir.path(), &["a.secret", "c.d/b"])).unwrap());
        assert_eq!(names(dir.path()), [""; 0]);
        Drafts::write(&planned(dir.path(), &["a", "no/such/b"])).unwrap_err();
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
