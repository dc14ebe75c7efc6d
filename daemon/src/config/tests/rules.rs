//! Who may have what, as it is written down.

use super::*;

fn user(id: u32) -> Condition {
    Condition::User(Principal::Id(id))
}

fn unit(name: &str) -> UnitPattern {
    UnitPattern::Exact(name.into())
}

fn all(conditions: &[Condition]) -> Rule {
    Rule::all(conditions.to_vec()).unwrap()
}

fn allow(list: &str) -> Box<[Rule]> {
    token(&format!("{TOKEN}allow = [{list}]")).allow
}

/// What is said of a good token with these rules, without file and key.
fn warned(list: &str) -> Vec<String> {
    let said = warnings(&format!("{TOKEN}allow = [{list}]"));
    said.iter()
        .map(|said| said.strip_prefix(&format!("{FILE}:7: token.t.allow: ")).unwrap().to_owned())
        .collect()
}

#[test]
fn a_rule_names_a_user_a_group_a_unit_or_an_executable() {
    for (rule, part) in [
        (
            "billing",
            "found \"billing\", expected \"user:NAME\", \"group:NAME\", \"unit:NAME\", \"exe:/PATH\"",
        ),
        ("usr:billing", "did you mean \"user\"?"),
        ("process:x", "expected \"user:NAME\""),
        ("*", "\"any\""),
        ("any:thing", "expected \"user:NAME\""),
        ("user:", "the name of the user is missing"),
        ("group:a b", "cannot be the name of a group"),
        ("user:-x", "cannot be the name of a user"),
        ("user:4294967295", "above the highest user number"),
        ("group:99999999999", "above the highest group number"),
        ("unit:billing", "expected a unit that processes run in, which ends in \".service\""),
        ("unit:billing.timer", "expected a unit that processes run in"),
        ("unit:bill*.service", "the only pattern stands for all instances of a template"),
        ("unit:pay@eu-*.service", "\"name@*.service\""),
        ("unit:*@*.service", "the only pattern"),
        ("unit:@*.service", "the only pattern"),
        ("unit:a@b@*.service", "the only pattern"),
        ("unit:*.service", "the only pattern"),
        (
            "unit:billing@.service",
            "such as \"billing@instance.service\", or all of them with \"billing@*.service\"",
        ),
        ("unit:.service", "cannot be the name of a unit"),
        ("unit:a/b.service", "cannot be the name of a unit"),
        ("exe:bin/x", "expected the absolute path of a program"),
        ("exe:", "expected the absolute path of a program"),
        ("exe:/", "expected the absolute path of a program"),
        ("exe:/usr/bin/", "expected the absolute path of a program"),
        ("exe:/usr/bin/../sbin/x", "without patterns, \".\", \"..\" and \"//\""),
        ("exe:/usr//bin/x", "without patterns, \".\", \"..\" and \"//\""),
        ("exe:/usr/./bin/x", "without patterns, \".\", \"..\" and \"//\""),
        ("exe:/usr/bin/*", "without patterns"),
        ("exe:/usr/bin/x\\n", "expected the absolute path of a program"),
        ("user_unit:sync", "any user can give a unit of its own manager any name"),
        ("user_unit:app.service", "{ user = \"NAME\", user_unit = \"NAME.service\" }"),
    ] {
        assert_faults(&format!("{TOKEN}allow = [\"{rule}\"]"), &[(7, "token.t.allow", part)]);
        assert_faults(&format!("[admin]\nallow = [\"user:0\",\n\"{rule}\"]"), &[(3, "admin.allow", part)]);
    }
    let rules = allow(
        "\"unit:a@b\\\\x2d1.service\", \"user:DOM\\\\ann\", \"group:0\", \"unit:pay@*.service\", \"exe:/usr/bin/x\"",
    );
    let instances = UnitPattern::Instances { template: "pay@".into(), suffix: ".service".into() };
    let expected = [
        Condition::Unit(unit("a@b\\x2d1.service")),
        Condition::User(Principal::Name("DOM\\ann".into())),
        Condition::Group(Principal::Id(0)),
        Condition::Unit(instances),
        Condition::Exe("/usr/bin/x".into()),
    ];
    assert_eq!(*rules, expected.map(Rule::of));
    assert_eq!(*allow("\"any\""), [Rule::ANY]);
}

#[test]
fn conditions_in_a_table_must_all_hold() {
    let rules = allow(
        "{ user = \"7\", unit = \"a.service\" }, { user_unit = \"b@*.service\", user = \"8\" }, \
         { group = \"9\", exe = \"/usr/bin/x\" }, { unit = \"c.scope\" }",
    );
    let instances = UnitPattern::Instances { template: "b@".into(), suffix: ".service".into() };
    assert_eq!(
        *rules,
        [
            all(&[user(7), Condition::Unit(unit("a.service"))]),
            all(&[user(8), Condition::UserUnit(instances)]),
            all(&[Condition::Group(Principal::Id(9)), Condition::Exe("/usr/bin/x".into())]),
            Rule::of(Condition::Unit(unit("c.scope"))),
        ]
    );
    let shown: Vec<String> = rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "user:7 and unit:a.service",
            "user:8 and user_unit:b@*.service",
            "group:9 and exe:/usr/bin/x",
            "unit:c.scope"
        ]
    );
}

#[test]
fn a_table_that_is_no_rule_is_refused_at_its_key() {
    for (table, key, part) in [
        ("{}", "", "an empty table, expected one or more of user, group, unit, exe, user_unit"),
        ("{ usr = \"a\" }", ".usr", "unknown condition; expected \"user\""),
        ("{ usr = \"a\" }", ".usr", "did you mean \"user\"?"),
        ("{ user = 7 }", ".user", "expected a string, found an integer"),
        ("{ user = [\"a\", \"b\"] }", ".user", "expected a string, found an array"),
        ("{ user = \"a b\", unit = \"a.service\" }", ".user", "cannot be the name of a user"),
        ("{ user = \"a\", unit = \"a\" }", ".unit", "which ends in"),
        ("{ user = \"a\", exe = \"x\" }", ".exe", "expected the absolute path"),
        ("{ user_unit = \"app.service\" }", "", "any user can give a unit of its own manager any name"),
        ("{ group = \"a\", user_unit = \"app.service\" }", "", "expected a table that names the user too"),
    ] {
        let path = |section: &str| format!("{section}.allow{key}");
        assert_faults(&format!("{TOKEN}allow = [{table}]"), &[(7, &path("token.t"), part)]);
        assert_faults(&format!("[admin]\nallow = [\n{table}]"), &[(3, &path("admin"), part)]);
    }
    assert_faults(
        &format!("{TOKEN}allow = [1]"),
        &[(7, "token.t.allow", "a string or a table, found an integer")],
    );
}

#[test]
fn a_rule_that_lets_nobody_else_in_is_a_warning() {
    assert_eq!(warned("\"user:1\", \"group:1\", { user = \"2\", group = \"2\" }"), [""; 0]);
    assert_eq!(warned("\"user:1\", \"user:1\""), ["\"user:1\" is listed twice"]);
    assert_eq!(warned("\"user:1\", \"any\""), ["\"user:1\" adds nothing to \"any\""]);
    assert_eq!(
        warned("{ unit = \"a.service\", user = \"1\" }, \"unit:a.service\""),
        ["\"user:1 and unit:a.service\" adds nothing to \"unit:a.service\""]
    );
}

#[test]
fn that_everybody_is_an_operator_is_warned_of() {
    let warned = warnings("[admin]\nallow = [\"any\"]");
    assert!(
        warned.iter().any(|warning| warning.contains(":2: admin.allow: \"any\" makes every")),
        "{warned:?}"
    );
    assert!(!warnings("[admin]\nallow = [\"user:0\"]").iter().any(|warning| warning.contains("operator")));
}

#[test]
fn an_executable_alone_is_warned_of() {
    for rule in ["\"exe:/usr/bin/x\"", "{ exe = \"/usr/bin/x\" }"] {
        assert!(warned(rule)[0].contains("LD_PRELOAD"), "{rule}");
    }
    assert_eq!(warned("{ exe = \"/usr/bin/x\", unit = \"a.service\" }"), [""; 0]);
}

#[test]
fn an_executable_that_is_a_link_is_warned_of_by_a_check() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let (program, link) = (folder.join("program"), folder.join("link"));
    std::fs::write(&program, "").unwrap();
    std::os::unix::fs::symlink(&program, &link).unwrap();
    for (path, is_warned) in [(&program, false), (&link, true), (&folder.join("absent"), false)] {
        let text = format!("{TOKEN}allow = [{{ user = \"0\", exe = {path:?} }}]");
        let (_directory, file) = directory(&text, &[]);
        let warned = load_and_look_up(&source(&file), ABLE).unwrap().warnings;
        let is_told = warned.iter().any(|warning| {
            warning.message.contains("symbolic link") && warning.message.contains(&format!("{program:?}"))
        });
        assert_eq!(is_told, is_warned, "{warned:?}");
    }
}

#[test]
fn root_is_an_exception_that_can_be_switched_off() {
    assert_eq!(good("[admin]\nroot = \"deny\"").admin.root, RootAccess::Deny);
    assert_eq!(good("[admin]\nroot = \"allow\"").admin.root, RootAccess::Allow);
    assert_each(
        "",
        &[
            (
                "[admin]\nroot = \"den\"",
                2,
                "admin.root",
                "expected \"allow\" or \"deny\"; did you mean \"deny\"?",
            ),
            ("[admin]\nroot = false", 2, "admin.root", "expected a string, found a boolean"),
            ("[daemon]\nroot = \"deny\"", 2, "daemon.root", "\"root\" belongs in [admin]"),
        ],
    );
}

#[test]
fn terms_of_variants_may_have_rules_of_their_own() {
    let settings = token(&format!(
        "{TOKEN}scope = \"a\"\nvariants = {{ scope = [\"a\", {{ term = \"b\", allow = [\"user:1\"] }}], \
         resource = \"r\" }}"
    ))
    .variants;
    assert_eq!(
        (settings.terms.scope.as_slice(), settings.terms.resource.as_slice()),
        (&["a".to_owned(), "b".into()][..], &["r".to_owned()][..])
    );
    let rules = TermRules { kind: TermKind::Scope, term: "b".into(), allow: vec![Rule::of(user(1))] };
    assert_eq!(settings.rules, [rules]);
}

#[test]
fn a_term_that_cannot_be_read_is_refused_at_its_key() {
    for (terms, key, part) in [
        ("[{ term = \"b\" }]", "", "\"allow\" is missing"),
        ("[{ allow = [] }]", "", "\"term\" is missing"),
        ("[{ term = \"b\", alow = [] }]", ".alow", "did you mean \"allow\"?"),
        ("[{ term = \"b c\", allow = [] }]", ".term", "one scope term"),
        ("[{ term = \"b\", allow = [\"x\"] }]", ".allow", "expected \"user:NAME\""),
        ("[\"b\", { term = \"b\", allow = [] }]", "", "\"b\" is listed twice, and once with rules"),
        ("[{ term = \"b\", allow = [] }, \"b\"]", "", "\"b\" is listed twice, and once with rules"),
        ("[1]", "", "found an integer"),
        ("{ term = \"b\", allow = [] }", "", "found a table"),
    ] {
        let key = format!("token.t.variants.scope{key}");
        assert_faults(&format!("{TOKEN}variants = {{ scope = {terms} }}"), &[(7, &key, part)]);
    }
}
