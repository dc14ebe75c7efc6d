//! The real programs, built once per test process.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// All that are built.
const PROGRAMS: [&str; 9] = [
    "tokend",
    "tokenctl",
    "tokend-proxy",
    "provider",
    "fd_donor",
    "load",
    "fd_relay",
    "flood",
    "http_caller",
];

/// The path of the built `tokend`.
pub fn tokend() -> PathBuf {
    directory().join("tokend")
}

/// The path of the built `tokenctl`.
pub fn tokenctl() -> PathBuf {
    directory().join("tokenctl")
}

/// The path of the built `tokend-proxy`.
pub fn proxy() -> PathBuf {
    directory().join("tokend-proxy")
}

/// The path of the built `provider`, the scripted provider as a program of its own.
pub fn provider() -> PathBuf {
    directory().join("provider")
}

/// The path of the built `fd_donor`, which gives its connection away.
pub fn fd_donor() -> PathBuf {
    directory().join("fd_donor")
}

/// The path of the built `load`, many callers at once.
pub fn load() -> PathBuf {
    directory().join("load")
}

/// The path of the built `fd_relay`, for callers that hand their connections over.
pub fn fd_relay() -> PathBuf {
    directory().join("fd_relay")
}

/// The path of the built `flood`, a caller that varies all it can.
pub fn flood() -> PathBuf {
    directory().join("flood")
}

/// The path of the built `http_caller`, which asks over HTTP.
pub fn http_caller() -> PathBuf {
    directory().join("http_caller")
}

/// The path of the built `call_api`, the example of the client library.
pub fn call_api() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let this = env::current_exe().expect("a program knows its own path");
        let directory = profile_directory(&this);
        let example = ["--package", "tokend-client", "--features", "reqwest", "--example", "call_api"];
        build(&directory, &example);
        directory.join("examples/call_api")
    });
    built.clone()
}

/// The path of the built `libtokend.so`, the client library for C.
pub fn libtokend() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let directory = profile_directory(&env::current_exe().expect("a program knows its own path"));
        build(&directory, &["--package", "tokend-c"]);
        directory.join("libtokend.so")
    });
    built.clone()
}

/// Copies a program to where every user can run it: the source tree may be closed to others.
///
/// Another process does the writing. Were it this one, a child that some other thread starts at the same
/// moment would inherit the open file, and the kernel runs no program that is open for writing.
///
/// # Panics
/// When it cannot be copied.
pub fn copy(program: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "0755"]).arg(program).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "{} cannot be copied", program.display());
}

/// The root of the source tree.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

/// Where cargo puts the programs of the profile that this very program was built with, after it has put
/// them there: cargo alone knows whether they are up to date. `TOKEND_PROGRAMS` names a directory of other ones.
fn directory() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(directory) = env::var_os("TOKEND_PROGRAMS") {
            return directory.into();
        }
        let this = env::current_exe().expect("a program knows its own path");
        let directory = profile_directory(&this);
        let programs: Vec<&str> = PROGRAMS.iter().flat_map(|name| ["--bin", name]).collect();
        build(&directory, &programs);
        directory
    })
}

fn profile_directory(program: &Path) -> PathBuf {
    let mut directory = program.parent().expect("a program lies in a directory");
    if directory.file_name().is_some_and(|name| name == "deps") {
        directory = directory.parent().expect("deps lies in a profile's directory");
    }
    directory.to_owned()
}

fn build(directory: &Path, targets: &[&str]) {
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let target = directory.parent().expect("a profile's directory lies in the target directory");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_this_package)) {
        cargo.env_remove(name);
    }
    let built = cargo
        .current_dir(workspace())
        .args(["build", "--quiet", "--profile", profile])
        .args(targets)
        .arg("--target-dir")
        .arg(target)
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "cargo could not build the programs: {built}");
}

/// What cargo tells the program that it runs about that program's own package. Build scripts that look at
/// these would run again, and all that depends on them be built again, each time.
fn is_of_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}
