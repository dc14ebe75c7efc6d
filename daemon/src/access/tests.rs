use proptest::prelude::*;
use tokend_protocol::ExplainedRule;

use super::*;

const OWN_UID: u32 = 900;

const FILE: Id = Id::File { device: 1, inode: 2 };

fn billing_exe(file: Id) -> Executable {
    Executable { path: "/usr/bin/billing".into(), file }
}

fn peer() -> Facts {
    Facts {
        uid: 1001,
        gid: 1001,
        groups: vec![27, 50].into(),
        pid: Some(7),
        unit: Some("billing.service".into()),
        user_unit: Some("app.service".into()),
        exe: Some(billing_exe(FILE)),
        ..Facts::default()
    }
}

/// The answers about names. There is none about others.
fn ids() -> ResolvedIds {
    let mut ids = ResolvedIds::default();
    ids.note(user("billing"), Some(Id::Number(1001)));
    ids.note(user("ghost"), None);
    ids.note(group("staff"), Some(Id::Number(50)));
    ids.note(exe("/usr/bin/billing"), Some(FILE));
    ids
}

fn user(name: &str) -> Condition {
    Condition::User(name.parse().map_or_else(|_| Principal::Name(name.into()), Principal::Id))
}

fn group(name: &str) -> Condition {
    Condition::Group(name.parse().map_or_else(|_| Principal::Name(name.into()), Principal::Id))
}

fn unit(name: &str) -> Condition {
    Condition::Unit(UnitPattern::Exact(name.into()))
}

fn user_unit(name: &str) -> Condition {
    Condition::UserUnit(UnitPattern::Exact(name.into()))
}

fn exe(path: &str) -> Condition {
    Condition::Exe(path.into())
}

fn all(conditions: &[Condition]) -> Rule {
    Rule::all(conditions.to_vec()).unwrap()
}

fn decider<'a>(facts: &'a Facts, ids: &'a ResolvedIds) -> Decider<'a> {
    Decider { facts, own_uid: OWN_UID, root: RootAccess::Allow, ids }
}

fn decision<'r>(peer: &Facts, rules: &'r [Rule]) -> Option<Reason<'r>> {
    decider(peer, &ids()).decide(rules)
}

fn explained(peer: &Facts, absent: &str, rules: &[Rule]) -> Vec<ExplainedRule> {
    rules.iter().map(|rule| decider(peer, &ids()).explain(rule, absent)).collect()
}

fn is_allowed(peer: &Facts, rule: Rule) -> bool {
    decision(peer, &[rule]).is_some()
}

#[test]
fn nobody_gets_anything_by_default_but_root_and_the_daemon_itself() {
    assert_eq!(decision(&peer(), &[]), None);
    assert_eq!(decision(&Facts { uid: 0, ..peer() }, &[]), Some(Reason::Root));
    assert_eq!(decision(&Facts { uid: OWN_UID, ..peer() }, &[]), Some(Reason::OwnUser));
}

#[test]
fn root_that_is_switched_off_needs_a_rule() {
    let root = Facts { uid: 0, gid: 0, groups: Groups::default(), ..peer() };
    let ids = ids();
    for own_uid in [OWN_UID, 0] {
        let decider = Decider { own_uid, root: RootAccess::Deny, ..decider(&root, &ids) };
        assert_eq!(decider.decide(&[]), None);
        assert_eq!(decider.decide(&[Rule::of(user("1001"))]), None);
        for rule in [Rule::of(user("0")), Rule::of(group("0")), Rule::of(unit("billing.service")), Rule::ANY]
        {
            assert_eq!(decider.decide(std::slice::from_ref(&rule)), Some(Reason::Rule(&rule)));
        }
    }
    let own = Facts { uid: OWN_UID, ..peer() };
    let decider = Decider { root: RootAccess::Deny, ..decider(&own, &ids) };
    assert_eq!(decider.decide(&[]), Some(Reason::OwnUser));
}

#[test]
fn each_kind_of_condition_matches_what_it_names_and_nothing_else() {
    let cases = [
        (user("1001"), true),
        (user("27"), false),
        (user("billing"), true),
        (user("staff"), false),
        (group("1001"), true),
        (group("50"), true),
        (group("0"), false),
        (group("staff"), true),
        (group("billing"), false),
        (unit("billing.service"), true),
        (unit("billing"), false),
        (unit("app.service"), false),
        (user_unit("app.service"), true),
        (user_unit("billing.service"), false),
        (exe("/usr/bin/billing"), true),
        (exe("/usr/bin/billing2"), false),
        (exe("/usr/bin"), false),
    ];
    for (condition, expected) in cases {
        assert_eq!(is_allowed(&peer(), Rule::of(condition.clone())), expected, "{condition}");
    }
    assert!(is_allowed(&Facts { uid: 4711, ..Facts::default() }, Rule::ANY));
}

#[test]
fn another_file_at_the_path_of_an_executable_is_not_that_executable() {
    let other = Some(billing_exe(Id::File { device: 1, inode: 3 }));
    let laid_over = Facts { exe: other, ..peer() };
    let rule = Rule::of(exe("/usr/bin/billing"));
    assert!(!is_allowed(&laid_over, rule.clone()));
    let finding = explained(&laid_over, "not known", &[rule]).remove(0);
    assert_eq!(
        finding.conditions[0].fact,
        "the executable is another file than /usr/bin/billing of this host"
    );
}

#[test]
fn every_condition_of_a_rule_must_hold() {
    let whole = [user("billing"), group("staff"), unit("billing.service"), exe("/usr/bin/billing")];
    assert!(is_allowed(&peer(), all(&whole)));
    let wrong =
        [user("ghost"), group("0"), unit("other.service"), exe("/usr/bin/other"), user_unit("x.service")];
    for wrong in wrong {
        let conditions = [&whole[..], std::slice::from_ref(&wrong)].concat();
        assert!(!is_allowed(&peer(), all(&conditions)), "{wrong}");
    }
}

#[test]
fn the_first_rule_that_matches_is_the_reason() {
    let rules = [user("1"), group("27"), user("1001")].map(Rule::of);
    assert_eq!(decision(&peer(), &rules), Some(Reason::Rule(&rules[1])));
}

#[test]
fn an_unknown_or_unanswered_name_and_an_absent_fact_match_nobody() {
    let bare = Facts { uid: 1001, gid: 1001, ..Facts::default() };
    for condition in [
        user("ghost"),
        user("unanswered"),
        group("unanswered"),
        unit("billing.service"),
        user_unit("app.service"),
        exe("/usr/bin/billing"),
    ] {
        assert!(!is_allowed(&bare, Rule::of(condition.clone())), "{condition}");
        assert!(!is_allowed(&bare, all(&[user("1001"), condition.clone()])), "{condition}");
    }
}

#[test]
fn findings_agree_with_the_decision_and_say_why() {
    let rules = [
        all(&[user("billing"), unit("other.service")]),
        Rule::of(user("ghost")),
        Rule::of(user("unanswered")),
        Rule::of(group("0")),
        Rule::of(exe("/usr/bin/billing")),
        Rule::ANY,
    ];
    let found = explained(&peer(), "not known", &rules);
    for (rule, finding) in rules.iter().zip(&found) {
        assert_eq!(finding.matches, is_allowed(&peer(), rule.clone()), "{rule}");
    }
    let told: Vec<Vec<(bool, &str)>> = found
        .iter()
        .map(|finding| finding.conditions.iter().map(|told| (told.holds, told.fact.as_str())).collect())
        .collect();
    assert_eq!(
        told,
        [
            vec![(true, "the user is 1001"), (false, "the unit is billing.service")],
            vec![(false, "this host has no user ghost")],
            vec![(false, "the host's name service gives no answer about user unanswered")],
            vec![(false, "group 0 is not among its groups")],
            vec![(true, "the executable is /usr/bin/billing")],
            vec![],
        ]
    );
}

#[test]
fn a_finding_names_the_missing_fact_and_the_id_of_a_name() {
    let bare = Facts { uid: 7, gid: 7, ..Facts::default() };
    let told = |condition: Condition| {
        let finding = explained(&bare, "not known", &[Rule::of(condition)]).remove(0);
        finding.conditions[0].fact.clone()
    };
    assert_eq!(told(user("billing")), "the user is 7, and billing is 1001");
    assert_eq!(told(group("staff")), "group 50 (staff) is not among its groups");
    assert_eq!(told(unit("a.service")), "the unit is not known");
    assert_eq!(told(user_unit("a.service")), "the user unit is not known");
    assert_eq!(told(exe("/a")), "the executable is not known");
    let rules = [Rule::of(unit("a.service"))];
    let finding = explained(&bare, "not given", &rules).remove(0);
    assert_eq!(finding.conditions[0].fact, "the unit is not given");
}

#[test]
fn of_a_unit_nothing_but_the_unit_is_assumed() {
    let of_unit = Facts { uid: NO_ID, gid: NO_ID, unit: Some("a.service".into()), ..Facts::default() };
    let rules =
        [Rule::of(unit("a.service")), Rule::of(user("7")), Rule::of(user("billing")), Rule::of(group("7"))];
    let found = explained(&of_unit, "not given", &rules);
    let told: Vec<(bool, &str)> =
        found.iter().map(|finding| (finding.matches, finding.conditions[0].fact.as_str())).collect();
    let expected = [
        (true, "the unit is a.service"),
        (false, "the user is not given"),
        (false, "the user is not given"),
        (false, "the group is not given"),
    ];
    assert_eq!(told, expected);
}

/// One of few values, so that rules and facts often meet.
fn some_condition() -> impl Strategy<Value = Condition> {
    let name = prop::sample::select(vec!["billing", "ghost", "unanswered", "1001", "0", "staff", "50"]);
    let units = prop::sample::select(vec!["billing.service", "app.service", "other.service"]);
    (0..5, name, units).prop_map(|(kind, name, unit_name)| match kind {
        0 => user(name),
        1 => group(name),
        2 => unit(unit_name),
        3 => user_unit(unit_name),
        _ => exe(if name == "0" { "/usr/bin/billing" } else { "/usr/bin/other" }),
    })
}

fn some_rule() -> impl Strategy<Value = Rule> {
    prop::collection::vec(some_condition(), 0..4)
        .prop_map(|conditions| Rule::all(conditions).unwrap_or(Rule::ANY))
}

fn some_peer() -> impl Strategy<Value = Facts> {
    let fact = |values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values)).prop_map(|fact| fact.map(str::to_owned))
    };
    let number = || prop::sample::select(vec![0_u32, 27, 50, OWN_UID, 1001]);
    let units: &[_] = &["billing.service", "app.service"];
    (number(), number(), prop::collection::vec(number(), 0..3), fact(units), fact(units), any::<bool>())
        .prop_map(|(uid, gid, groups, unit, user_unit, has_exe)| {
            let exe = has_exe.then(|| billing_exe(FILE));
            Facts { uid, gid, groups: Groups::from(groups), unit, user_unit, exe, ..Facts::default() }
        })
}

proptest! {
    #[test]
    fn a_caller_that_matches_a_rule_matches_every_wider_one(
        peer in some_peer(),
        rule in some_rule(),
        kept in any::<u8>(),
    ) {
        let some = rule.conditions().iter().enumerate().filter(|(index, _)| kept >> index & 1 == 1);
        let wider = Rule::all(some.map(|(_, condition)| condition.clone()).collect()).unwrap_or(Rule::ANY);
        prop_assert!(wider.includes(&rule));
        let is_matched = |rule: &Rule| decider(&peer, &ids()).matches(rule);
        if is_matched(&rule) {
            prop_assert!(is_matched(&wider));
        }
    }

    #[test]
    fn a_decision_has_the_expected_reason_and_the_explanation_agrees(
        peer in some_peer(),
        rules in prop::collection::vec(some_rule(), 0..4),
        is_root_denied in any::<bool>(),
    ) {
        let root = if is_root_denied { RootAccess::Deny } else { RootAccess::Allow };
        let found = explained(&peer, "not known", &rules);
        let first = rules.iter().zip(&found).find(|(_, finding)| finding.matches).map(|(rule, _)| rule);
        let expected = match (peer.uid, root) {
            (0, RootAccess::Allow) => Some(Reason::Root),
            (OWN_UID, _) => Some(Reason::OwnUser),
            _ => first.map(Reason::Rule),
        };
        prop_assert_eq!(Decider { root, ..decider(&peer, &ids()) }.decide(&rules), expected);
    }

    #[test]
    fn less_knowledge_never_lets_anybody_in(peer in some_peer(), rules in prop::collection::vec(some_rule(), 0..4)) {
        let bare = Facts { unit: None, user_unit: None, exe: None, ..peer.clone() };
        let knowing_less = [
            decision(&bare, &rules),
            decider(&peer, &ResolvedIds::default()).decide(&rules),
        ];
        if decision(&peer, &rules).is_none() {
            prop_assert_eq!(knowing_less, [None, None]);
        }
    }
}
