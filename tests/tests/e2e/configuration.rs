//! What an operator is told about a configuration before it is used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tokend_tests::certificate::Authority;
use tokend_tests::test_support::{provider_table, token_table};
use tokend_tests::{Finished, Kind, Provider, Scene, StandIn, TestDir, process, program, secrets, wait};

fn check(home: &TestDir) -> Finished {
    let config = home.config();
    let finished = process::run(
        Command::new(program::tokend()).arg("check").arg("--config").arg(config),
        wait::PATIENCE,
    );
    secrets::assert_absent("standard output of tokend check", &finished.stdout);
    finished
}

/// Each line that has a fault, with a word that the report of it must have.
const TEN_FAULTS: &str = r#"
[daemon]
sockett = "/run/x.sock"                                #! socket
max_connections = "many"                               #! max_connections

[provider.one]
token_endpoint = "http://provider.example/token"       #! https
client_id = "c"
client_secret = { file = "relative/path" }             #! absolute
token_endpoint_auth_method = "client_secret_pots"      #! client_secret_post

[provider.two]
token_endpoint = "https://provider.example/token"
client_id = "c"
client_secret = { env = "SECRET" }

[token.good]
provider = "two"

[token."a/b"]                                          #! a/b
provider = "two"

[token.three]
provider = "tow"                                       #! two

[token.four]
provider = "two"
grant_type = "pasword"                                 #! password
allow = ["alice"]                                      #! user:
refresh_before = "soon"                                #! refresh_before
"#;

#[test]
fn ten_faults_are_ten_reports_each_with_its_line() {
    let home = TestDir::new();
    fs::write(home.config(), TEN_FAULTS).unwrap();
    let finished = check(&home);
    assert_ne!(finished.code, 0);
    let report = finished.stdout + &finished.stderr;
    let file = home.config().display().to_string();
    let faults: Vec<&str> = report.lines().filter(|line| line.contains(&file)).collect();
    for (number, line) in TEN_FAULTS.lines().enumerate() {
        let Some((_, word)) = line.split_once("#! ") else { continue };
        let place = format!("{file}:{}:", number + 1);
        let found: Vec<&&str> = faults.iter().filter(|fault| fault.contains(&place)).collect();
        assert_eq!(found.len(), 1, "one report for line {}:\n{report}", number + 1);
        assert!(found[0].contains(word), "{word:?} is missing from {}", found[0]);
    }
    assert_eq!(faults.len(), 10, "{report}");
}

#[test]
fn a_good_configuration_is_told_to_be_good() {
    let home = TestDir::new();
    let standins = Kind::ALL.map(StandIn::start);
    let text: String = standins.iter().map(|standin| standin.configuration(&home, "")).collect();
    home.configure("", &text);
    let finished = check(&home);
    assert_eq!(finished.code, 0, "{}{}", finished.stdout, finished.stderr);
    let asked: usize = standins.iter().map(|standin| standin.provider().connections()).sum();
    assert_eq!(asked, 0, "a check asks no provider");
}

#[test]
fn what_is_malformed_double_or_contradictory_is_told_with_its_line() {
    let provider = "[provider.p]\ntoken_endpoint = \"https://p.example/t\"\nclient_id = \"c\"\nclient_secret = { env = \"S\" }\n";
    let cases = [
        ("[provider.p\n", "", 1, ""),
        (provider, "[provider.p]\n", 5, ""),
        (provider, "client_id = \"d\"\n", 5, "client_id"),
        (provider, "issuer = \"https://p.example\"\n", 5, "issuer"),
        (provider, "[token.t]\nprovider = \"p\"\nusername = \"u\"\n", 7, "username"),
        (provider, "[token.t]\nprovider = \"p\"\ngrant_type = \"password\"\n", 7, "username"),
        (provider, "[token.t]\nprovider = \"p\"\nparams = { scope = \"s\" }\n", 7, "scope"),
        (provider, "[token.t]\nprovider = \"p\"\nheaders = { Authorization = \"x\" }\n", 7, "Authorization"),
    ];
    for (text, more, line, word) in cases {
        let home = TestDir::new();
        fs::write(home.config(), format!("{text}{more}")).unwrap();
        let finished = check(&home);
        assert_ne!(finished.code, 0, "{more}");
        let place = format!("tokend.toml:{line}:");
        let told = finished.stderr.lines().any(|fault| fault.contains(&place) && fault.contains(word));
        assert!(told, "{place} {word}: {}", finished.stderr);
    }
}

#[test]
fn a_file_that_is_absent_is_a_fault_and_not_a_default() {
    let home = TestDir::new();
    let finished = check(&home);
    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("tokend.toml"), "{}", finished.stderr);
}

#[test]
fn a_check_ends_at_once_where_a_file_would_never_end() {
    let home = TestDir::new();
    let authority = Authority::new();
    nix::unistd::mkfifo(&home.config(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(check(&home).stderr.contains("tokend.toml: cannot be read: not a regular file"));
    let check_with = |ca_file: &std::path::Path| {
        let more = format!("ca_file = {ca_file:?}\n");
        let provider = provider_table(&home, "p", "https://p.example/t", &more);
        fs::remove_file(home.config()).unwrap();
        home.configure("", &(provider + &token_table("t", "")));
        check(&home)
    };
    for endless in ["/dev/zero", "/proc/self/fd/0"] {
        let warned = check_with(endless.as_ref());
        let reason = format!("{endless}: it cannot be read: not a regular file");
        assert!(warned.code == 0 && warned.stderr.contains(&reason), "{}", warned.stderr);
    }
    let good = check_with(&authority.ca_file());
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    let missing = check_with(&home.path().join("missing"));
    assert!(missing.code == 0 && missing.stderr.contains("No such file"), "a warning: {}", missing.stderr);
}

#[test]
fn a_drop_in_adds_to_the_file_and_its_faults_are_its_own() {
    let home = TestDir::new();
    home.configure("", "");
    let drop_ins = home.path().join("tokend.toml.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(drop_ins.join("10-provider.toml"), "[provider.p]\ntoken_endpoint = 5\n").unwrap();
    let finished = check(&home);
    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("10-provider.toml:2:"), "{}", finished.stderr);
}

#[test]
fn a_secret_written_into_the_configuration_is_refused_and_not_repeated() {
    let home = TestDir::new();
    let secret = secrets::invent("client-secret");
    let text = format!(
        "[provider.p]\ntoken_endpoint = \"https://p.example/t\"\nclient_id = \"c\"\nclient_secret = \"{secret}\"\n"
    );
    home.configure("", &text);
    // The search for it is the harness's.
    let finished = check(&home);
    assert_ne!(finished.code, 0);
    assert!(finished.stderr.contains("client_secret"), "{}", finished.stderr);
}

#[test]
fn a_secret_file_that_others_can_read_is_refused_with_the_way_to_mend_it() {
    let scene = Scene::start(Provider::start(), "");
    let path = scene.home.path().join("p.secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    scene.reconfigure("", &token_table("t", ""));
    scene.daemon.signal(nix::sys::signal::Signal::SIGHUP);
    let line = scene.daemon.wait_for_log(&["p.secret", "chmod"]);
    assert!(line.contains("600") || line.contains("o-r") || line.contains("go-"), "{line}");
    assert_eq!(scene.provider.count(), 0, "the secret is not used");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    scene.tokenctl().run(&["refresh", "t"]).expect_success();
}

#[test]
fn a_check_looks_with_the_eyes_of_the_user_who_runs_the_daemon() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let home = TestDir::new();
    let path = home.path().join("p.secret");
    fs::write(&path, secrets::invent("client-secret")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "[provider.p]\ntoken_endpoint = \"https://p.example/t\"\nclient_id = \"c\"\nclient_secret = {{ file = {path:?} }}\n"
    );
    home.configure("", &text);
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o644)).unwrap();
    let check_as = |user: &str| {
        let mut command = Command::new(program::tokend());
        command.arg("check").arg("--config").arg(home.config()).args(["--as-user", user]);
        process::run(&mut command, wait::PATIENCE)
    };
    assert_eq!(check_as("root").code, 0);
    let refused = check_as("nobody");
    assert_ne!(refused.code, 0);
    let remedy = format!("chown nobody {}; chmod 0400", path.display());
    for part in ["tokend.toml:", "provider.p.client_secret.file: ", &remedy] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    std::os::unix::fs::chown(&path, Some(nobody.uid.as_raw()), None).unwrap();
    let finished = check_as("nobody");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    let unknown = check_as("no-such-user-here");
    assert!(unknown.code != 0 && unknown.stderr.contains("no user no-such-user-here"), "{}", unknown.stderr);
}
