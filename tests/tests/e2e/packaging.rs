//! What `systemd/install` installs, as a packager runs it.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tokend_tests::{process, program, requirement, wait};

const FILES: [&str; 23] = [
    "usr/bin/tokend",
    "usr/bin/tokenctl",
    "usr/lib/debug/usr/bin/tokend.debug",
    "usr/lib/systemd/system/tokend.service",
    "usr/lib/systemd/system/tokend.socket",
    "usr/lib/systemd/system/tokend-metrics.service",
    "usr/lib/systemd/system/tokend-sync@.service",
    "usr/lib/systemd/system/tokend.service.d/257-fdstore.conf",
    "usr/lib/sysusers.d/tokend.conf",
    "usr/lib/tmpfiles.d/tokend.conf",
    "usr/share/doc/tokend/prometheus/tokend.rules.yml",
    "usr/share/doc/tokend/CHANGELOG.md",
    "usr/share/doc/tokend/CONFIGURATION.md",
    "usr/share/doc/tokend/LICENSE-MIT",
    "usr/share/doc/tokend/README.md",
    "usr/share/doc/tokend/SECURITY.md",
    "usr/share/doc/tokend/tokend.toml",
    "usr/share/man/man1/tokenctl.1",
    "usr/share/man/man1/tokenctl-get.1",
    "usr/share/man/man8/tokend.8",
    "usr/share/bash-completion/completions/tokenctl",
    "usr/share/fish/vendor_completions.d/tokenctl.fish",
    "usr/share/zsh/site-functions/_tokenctl",
];

fn install(tree: &Path, prefix: &str, systemd: &str) {
    let mut install = Command::new(program::workspace().join("systemd/install"));
    install.env("DESTDIR", tree).env("PREFIX", prefix).env("SYSTEMD_VERSION", systemd);
    install.env("TARGET_DIR", program::tokend().parent().unwrap());
    process::run(&mut install, wait::PATIENCE).expect_success();
}

#[test]
fn a_package_has_all_programs_units_and_documents() {
    let tree = TempDir::new().unwrap();
    install(tree.path(), "/usr", "257");
    let missing: Vec<&str> = FILES.into_iter().filter(|file| !tree.path().join(file).exists()).collect();
    assert_eq!(missing, [""; 0]);
    for program in ["tokend", "tokenctl"] {
        let installed = tree.path().join("usr/bin").join(program);
        process::run(Command::new(&installed).arg("--version"), wait::PATIENCE).expect_success();
        let built = fs::metadata(program::tokend().with_file_name(program)).unwrap().len();
        assert!(fs::metadata(installed).unwrap().len() < built, "{program} has its debug information");
    }
}

#[test]
fn an_installation_below_another_prefix_refers_to_its_own_paths() {
    let tree = TempDir::new().unwrap();
    install(tree.path(), "/opt/tokend", "252");
    let units = tree.path().join("opt/tokend/lib/systemd/system");
    let service = fs::read_to_string(units.join("tokend.service")).unwrap();
    assert!(service.contains("ExecStart=/opt/tokend/bin/tokend --config"));
    assert!(!service.contains("/usr/bin/tokend") && !service.contains("/usr/share/doc/tokend"));
    for unit in ["tokend-metrics.service", "tokend-sync@.service"] {
        let unit = fs::read_to_string(units.join(unit)).unwrap();
        assert!(
            unit.contains("ExecStart=/opt/tokend/bin/tokenctl ") && !unit.contains("/usr/bin/token"),
            "{unit}"
        );
    }
    assert!(!units.join("tokend.service.d").exists(), "the drop-ins are for newer versions than 252");
}

/// `just install` runs two commands: the build must build what the script installs.
#[test]
fn just_install_builds_every_program_that_is_installed() {
    let read = |file: &str| fs::read_to_string(program::workspace().join(file)).unwrap();
    let script = read("systemd/install");
    let list = script.lines().find_map(|line| line.strip_prefix("programs=(")?.strip_suffix(')')).unwrap();
    let justfile = read("justfile");
    let build =
        justfile.lines().map(str::trim).find(|line| line.starts_with("cargo build --release")).unwrap();
    for program in list.split(' ') {
        assert!(build.contains(&format!("-p {program}")), "{build}");
    }
}

#[test]
fn the_manual_page_has_no_warning() {
    if !requirement::program("groff") {
        return;
    }
    let mut groff = Command::new("groff");
    groff.args(["-ww", "-man", "-Tutf8", "-z"]).arg(program::workspace().join("systemd/tokend.8"));
    let checked = process::run(&mut groff, wait::PATIENCE);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""));
}
