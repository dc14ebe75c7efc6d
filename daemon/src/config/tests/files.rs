//! Drop-ins, and files that cannot be read or that others can write.

use super::*;

#[test]
fn drop_ins_replace_single_keys_in_order_of_their_names() {
    let (_directory, path) = directory(
        &format!("{TOKEN}scope = \"main\"\nparams = {{ a = \"main\" }}\nresource = \"main\""),
        &[
            ("20-late.toml", "[token.t]\nscope = \"late\""),
            (
                "10-early.toml",
                "[token.t]\nscope = \"early\"\nparams = { b = \"early\" }\n[token.u]\nprovider = \"p\"",
            ),
            (".hidden.toml", "colour = 1"),
            ("README", "not TOML"),
            ("30.toml.bak", "colour = 1"),
        ],
    );
    let loaded = load(&source(&path), ABLE).unwrap();
    assert_eq!(loaded.warnings, []);
    let credential = &loaded.config.tokens["t"].credential;
    assert_eq!((&credential.terms.scope, &credential.terms.resource), (&words(&["late"]), &words(&["main"])));
    assert_eq!(
        credential.params,
        BTreeMap::from([("b".into(), "early".into())]),
        "tables are replaced as a whole"
    );
    assert!(loaded.config.tokens.contains_key("u"));
}

#[test]
fn a_drop_in_that_takes_rules_away_is_a_warning() {
    let main =
        format!("{TOKEN}allow = [\"user:0\", {{ user = \"0\", unit = \"a.service\" }}, \"unit:b.service\"]");
    let warnings = |allow: &str| {
        let (_directory, path) = directory(&main, &[("x.toml", &format!("[token.t]\nallow = {allow}"))]);
        let warnings = load(&source(&path), ABLE).unwrap().warnings;
        let shown: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        shown.into_iter().filter(|warning| warning.contains("replaces the list")).collect::<Vec<_>>()
    };
    let repeated = "{ unit = \"a.service\", user = \"0\" }, \"user:0\", \"unit:b.service\"";
    assert_eq!(warnings(&format!("[\"user:7\", {repeated}]")), [""; 0]);
    let [warning] = &warnings("[\"user:0\"]")[..] else { panic!("one warning was expected") };
    let words = [
        "x.toml:2: token.t.allow: replaces the list of ",
        "tokend.toml:",
        "and 2 of its rules are in force no longer",
    ];
    assert!(words.iter().all(|words| warning.contains(words)), "{warning}");
    assert!(warnings("[]").len() == 1);
}

#[test]
fn of_any_two_drop_ins_the_later_name_wins() {
    let section =
        |token: usize, scope: usize| format!("[token.t{token}]\nprovider = \"p\"\nscope = \"from{scope}\"\n");
    let files: Vec<(String, String)> = [5, 2, 8, 1, 7, 4, 3, 6]
        .map(|index| (format!("{index}.toml"), section(index, index) + &section(index + 1, index)))
        .to_vec();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let (_directory, path) = directory(PROVIDER, &files);
    let config = load(&source(&path), ABLE).unwrap().config;
    for index in 1..=8_usize {
        let scope = &config.tokens[format!("t{index}").as_str()].credential.terms.scope;
        assert_eq!(scope.as_slice(), [format!("from{index}")]);
    }
}

#[test]
fn faults_of_all_files_come_together_each_with_its_file() {
    let (_directory, path) = directory(
        &format!("{TOKEN}scope = 1\nresource = 1"),
        &[
            ("a.toml", "[token.t]\nscope = \"good\""),
            ("b.toml", "\n[token.t]\naudience = 1\nallow = [\"x\"]"),
        ],
    );
    let faults = load(&source(&path), ABLE).unwrap_err();
    let place = |fault: &Fault| {
        format!("{}:{}", fault.place.file.file_name().unwrap().display(), fault.place.line.unwrap())
    };
    let shown: Vec<String> = faults.iter().map(place).collect();
    assert_eq!(shown, ["tokend.toml:8", "b.toml:3", "b.toml:4"], "{faults:?}");
}

#[test]
fn files_that_cannot_be_read_are_faults() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokend.toml");
    let fault = || {
        let faults = load(&source(&path), ABLE).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].to_string()
    };
    let missing = fault();
    assert!(missing.starts_with(&format!("{}: cannot be read: ", path.display())), "{missing}");

    std::fs::write(&path, b"[daemon]\n# caf\xe9\n").unwrap();
    let latin = fault();
    assert!(latin.contains("tokend.toml:2: not UTF-8"), "{latin}");

    write(&path, TOKEN);
    std::fs::create_dir_all(directory.path().join("tokend.toml.d/x.toml")).unwrap();
    assert!(fault().contains("x.toml: cannot be read"));
    std::fs::remove_dir_all(directory.path().join("tokend.toml.d")).unwrap();

    let drop_in = directory.path().join("tokend.toml.d/x.toml");
    std::fs::create_dir(directory.path().join("tokend.toml.d")).unwrap();
    mkfifo(&drop_in, Mode::S_IRWXU).unwrap();
    assert!(fault().contains("x.toml: cannot be read: not a regular file"));
    std::fs::remove_file(&drop_in).unwrap();
    symlink("/dev/zero", &drop_in).unwrap();
    assert!(fault().contains("x.toml: cannot be read: not a regular file"));
    std::fs::remove_file(&drop_in).unwrap();
    std::fs::File::create(&drop_in).unwrap().set_len(1 << 40).unwrap();
    assert!(fault().contains("x.toml: cannot be read: has more than 16777216 bytes"));
    std::fs::remove_dir_all(directory.path().join("tokend.toml.d")).unwrap();
    std::fs::write(directory.path().join("tokend.toml.d"), "").unwrap();
    assert!(fault().contains("tokend.toml.d: cannot list the drop-ins"));
}

/// A configuration that is reached through a link, and the parts of the way to it.
fn behind_a_link() -> (tempfile::TempDir, PathBuf, [(PathBuf, &'static str); 5]) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir_all(at("real/tokend.toml.d")).unwrap();
    write(&at("real/tokend.toml"), TOKEN);
    write(&at("real/drop-in"), "");
    symlink("../drop-in", at("real/tokend.toml.d/x.toml")).unwrap();
    symlink(at("real"), at("link")).unwrap();
    let parts = [
        ("real", "folder"),
        ("real/tokend.toml", "file"),
        ("real/tokend.toml.d", "folder"),
        ("real/drop-in", "file"),
        ("", "folder"),
    ];
    let parts = parts.map(|(name, kind)| (directory.path().join(name).components().collect(), kind));
    let path = at("link/tokend.toml");
    (directory, path, parts)
}

#[test]
fn all_that_others_can_write_on_the_way_to_a_configuration_is_warned_of_once() {
    let (_directory, path, parts) = behind_a_link();
    let warnings = || {
        let warnings = load(&source(&path), ABLE).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let set =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(warnings(), [""; 0]);
    for (part, kind) in parts {
        for mode in [0o720, 0o702] {
            set(&part, mode);
            let found = warnings();
            let start = format!(
                "{}: users other than its owner can write this {kind} (mode 0{mode:o})",
                part.display()
            );
            assert!(found.len() == 1 && found[0].starts_with(&start), "{start}: {found:#?}");
        }
        set(&part, 0o755);
    }
    // Other users can create files in such a folder, and replace none.
    let (above, drop_ins) = (path.with_file_name(""), path.with_file_name("tokend.toml.d"));
    set(&above, 0o1777);
    assert_eq!(warnings(), [""; 0]);
    set(&drop_ins, 0o1777);
    assert_eq!(warnings().len(), 1, "a new drop-in would be read");
    std::fs::remove_dir_all(drop_ins).unwrap();
    assert_eq!(warnings().len(), 1, "a new folder of drop-ins would be read");
}

#[test]
fn all_that_others_own_on_the_way_to_a_configuration_is_warned_of_once() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (directory, path, parts) = behind_a_link();
    let links = ["link", "real/tokend.toml.d/x.toml"].map(|name| (directory.path().join(name), "link"));
    for (part, kind) in parts.into_iter().chain(links) {
        std::os::unix::fs::lchown(&part, Some(54321), None).unwrap();
        let found = load(&source(&path), ABLE).unwrap().warnings;
        let start = format!("user 54321 owns this {kind}");
        assert!(found.len() == 1 && found[0].message.starts_with(&start), "{start}: {found:#?}");
        assert_eq!(*found[0].place.file, *part);
        std::os::unix::fs::lchown(&part, Some(0), None).unwrap();
    }
}

#[test]
fn a_circle_of_links_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokend.toml");
    symlink(&path, &path).unwrap();
    assert!(load(&source(&path), ABLE).unwrap_err()[0].message.contains("cannot be read"));
}
