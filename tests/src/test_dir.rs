//! A directory of a test's own: configuration, secrets, socket, state and log of one daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::secrets;

/// The directory. It goes when the test does.
#[derive(Debug)]
pub struct TestDir {
    directory: TempDir,
}

impl TestDir {
    /// An empty one, which other users may pass through, to the socket, but not look into.
    pub fn new() -> Self {
        let directory =
            tempfile::Builder::new().prefix("tokend-").tempdir().expect("a directory can be made");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self { directory }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.path().join("tokend.sock")
    }

    /// The directory of egress sockets, where a test makes some.
    pub fn egress_dir(&self) -> PathBuf {
        self.path().join("egress")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path().join("tokend.toml")
    }

    /// What the daemon writes to standard error.
    pub fn log(&self) -> PathBuf {
        self.path().join("tokend.log")
    }

    /// Writes the configuration, as a whole, because half of one may be a good one that means something else.
    /// `[daemon]` is the harness's own, so that nothing is written elsewhere: `daemon` holds further lines of it.
    pub fn configure(&self, daemon: &str, rest: &str) {
        let state = self.path().join("state");
        fs::create_dir_all(&state).unwrap();
        let text = format!("[daemon]\nstate_dir = \"{}\"\n{daemon}\n{rest}", state.display());
        let draft = self.path().join("tokend.toml.draft");
        fs::write(&draft, text).expect("the configuration can be written");
        fs::rename(draft, self.config()).expect("the configuration can be put in its place");
    }

    /// A secret that is made up where its file is not there yet: the configuration's word for it.
    pub fn secret_once(&self, name: &str) -> String {
        let path = self.path().join(name);
        if path.exists() { in_file(&path) } else { self.secret(name, &secrets::invent(name)) }
    }

    /// Writes a secret to a file that only its owner can read, at once and as a whole, and registers it to be
    /// searched for. What comes back is the configuration's word for it: `{ file = "PATH" }`.
    pub fn secret(&self, name: &str, text: &str) -> String {
        secrets::register(name, text);
        let path = self.path().join(name);
        let fresh = self.path().join(format!("{name}.new"));
        fs::write(&fresh, text).expect("a secret can be written");
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&fresh, &path).unwrap();
        in_file(&path)
    }
}

fn in_file(path: &Path) -> String {
    format!("{{ file = \"{}\" }}", path.display())
}

impl Default for TestDir {
    fn default() -> Self {
        Self::new()
    }
}
