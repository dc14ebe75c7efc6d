//! Packages of the programs, as `systemd/packaging/build` makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, program, wait};

/// Makes a package (`deb`, `rpm`, `tarball`, `sbom`) in a folder, of programs in another folder, which have this version.
///
/// # Panics
/// When it cannot be made.
pub fn build(kind: &str, version: &str, programs: &Path, out: &Path) -> PathBuf {
    let mut build = Command::new(program::workspace().join("systemd/packaging/build"));
    build.arg(kind).env("VERSION", version).env("TARGET_DIR", programs).env("OUT", out);
    // Fast, not small.
    build.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
    process::run(&mut build, wait::PATIENCE).expect_success();
    let ending = match kind {
        "tarball" => "gz",
        "sbom" => "json",
        same => same,
    };
    let is_of_kind = |path: &PathBuf| path.extension().is_some_and(|extension| extension == ending);
    let mut made = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).filter(is_of_kind);
    made.next().unwrap_or_else(|| panic!("no {kind} in {}", out.display()))
}
