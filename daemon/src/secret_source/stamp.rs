//! What a secret's file looks like from outside. Where two stamps differ, reading it again may bring something
//! else; where they agree, it would not. No secret is read for one.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{CREDENTIALS_DIRECTORY, FILES, SecretSource};

/// The look of a file, following links; nothing where there is none. Owner and mode are part of it, because they
/// decide whether a secret may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(Option<Look>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    file: (u64, u64),
    size: u64,
    owner: u32,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|metadata| Look::of(&metadata)))
    }
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            owner: metadata.uid(),
            mode: metadata.mode(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
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

/// The stamps of these files, taken on another thread: they may be on a file system that hangs. Nothing where
/// they cannot be taken.
pub async fn stamps(paths: Vec<PathBuf>) -> Option<Vec<Stamp>> {
    let place = FILES.acquire().await.ok()?;
    let looking = tokio::task::spawn_blocking(move || {
        // Given back when the look ends, not when nobody waits for it any more.
        let _place = place;
        paths.iter().map(|path| Stamp::of(path)).collect()
    });
    looking.await.ok()
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
