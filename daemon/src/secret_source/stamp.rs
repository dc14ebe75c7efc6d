//! What identifies the content of a secret's file from outside. If two stamps differ, reading the file again may bring
//! another secret. No secret is read for a stamp.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{CREDENTIALS_DIRECTORY, SecretSource, on_another_thread};

/// Device, inode, size, owner, mode and the times of a file, following links; nothing if there is none. Owner and mode
/// decide whether a secret may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, u64, u32, u32, [i64; 4])>);

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|of| {
            let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
            (of.dev(), of.ino(), of.size(), of.uid(), of.mode(), times)
        }))
    }
}

impl SecretSource {
    /// The file that holds the secret, if a file does.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Credential(name) => {
                std::env::var_os(CREDENTIALS_DIRECTORY).map(|directory| Path::new(&directory).join(name))
            }
            Self::File(path) => Some(path.clone()),
            Self::Environment(_) | Self::Command(_) => None,
        }
    }
}

/// The stamps of these files, taken on another thread because their file system may hang. Nothing if they cannot be
/// taken.
pub async fn stamps(paths: Vec<PathBuf>) -> Option<Vec<Stamp>> {
    on_another_thread(move || paths.iter().map(|path| Stamp::of(path)).collect()).await.ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_stamp_differs_after_every_way_to_replace_a_secret_and_not_after_a_look_at_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
        write("old", "a");
        write("new", "b");
        let secret = at("secret");
        let changes: [(&str, &dyn Fn()); 6] = [
            ("it appears", &|| write("secret", "one")),
            ("written in place", &|| write("secret", "other")),
            ("mode", &|| fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o640)).unwrap()),
            ("renamed over", &|| fs::rename(at("new"), at("secret")).unwrap()),
            ("a link in its place", &|| {
                symlink(at("old"), at("link")).unwrap();
                fs::rename(at("link"), at("secret")).unwrap();
            }),
            ("it is gone", &|| fs::remove_file(at("secret")).unwrap()),
        ];
        for (what, change) in changes {
            let before = Stamp::of(&secret);
            let _ = fs::read(&secret);
            assert_eq!(Stamp::of(&secret), before, "{what}: looked at only");
            change();
            assert_ne!(Stamp::of(&secret), before, "{what}");
        }
    }
}
