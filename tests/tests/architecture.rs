//! Checks the sources against ARCHITECTURE.md: the imports between the modules of the daemon, the functions that the two
//! paths name, and the size of files.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tokend_tests::program::workspace;

/// The most lines of a file before its tests. A longer one has more than one job.
const FILE_LINES_MAX: usize = 400;

/// The most hops of the path of a request, and of a renewal.
const REQUEST_HOPS_MAX: usize = 15;
const RENEWAL_HOPS_MAX: usize = 12;

/// The modules that each module may import.
type Dependencies = BTreeMap<String, BTreeSet<String>>;

/// A source file of the daemon.
struct Source {
    /// Below `daemon/src`.
    path: String,
    /// What comes before its tests.
    code: String,
}

impl Source {
    /// The first part of the path: `server` for both `server.rs` and `server/accept.rs`.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// The modules that are named after `crate::`.
    fn imports(&self) -> BTreeSet<&str> {
        let code = self.code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let after = code.flat_map(|line| line.split("crate::").skip(1));
        let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        after.map(|rest| rest.split(|c| !is_in_name(c)).next().unwrap_or_default()).collect()
    }
}

fn architecture() -> String {
    fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap()
}

/// The part of the document below a heading.
fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, below) = document.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    below.split("\n## ").next().unwrap_or_default()
}

/// The table of dependencies: `| `module` | `module`, `module` |`.
fn stated_dependencies(document: &str) -> Dependencies {
    let rows = section(document, "Dependencies").lines().filter(|line| line.starts_with("| `"));
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let row = |line: &str| {
        let mut cells = line.split('|').skip(1).map(names);
        let (modules, may_import) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        modules.into_iter().map(move |module| (module, may_import.clone())).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

fn sources(below: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if name.starts_with("tests") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(source(below, &path));
            }
        }
    }
    found
}

fn source(below: &Path, path: &PathBuf) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
    Source { path: path.strip_prefix(below).unwrap().to_str().unwrap().to_owned(), code }
}

/// Every import that the table does not allow, as a sentence.
fn violations(sources: &[Source], dependencies: &Dependencies) -> Vec<String> {
    let nothing = BTreeSet::new();
    let mut found = Vec::new();
    for source in sources {
        let module = source.module();
        let Some(allowed) = dependencies.get(module).or((module == "lib").then_some(&nothing)) else {
            found.push(format!("{}: the module {module} is not in the table of dependencies", source.path));
            continue;
        };
        let is_wrong = |import: &&str| *import != module && !allowed.contains(*import);
        let wrong = source.imports().into_iter().filter(is_wrong);
        found.extend(wrong.map(|import| format!("{}: {module} must not import {import}", source.path)));
    }
    found
}

/// A module that can reach itself by the dependencies.
fn cycle(dependencies: &Dependencies) -> Option<&String> {
    dependencies.keys().find(|start| {
        let mut reached = BTreeSet::new();
        let mut next = vec![*start];
        while let Some(module) = next.pop() {
            for to in dependencies.get(module).into_iter().flatten() {
                if reached.insert(to) {
                    next.push(to);
                }
            }
        }
        reached.contains(start)
    })
}

#[test]
fn every_import_follows_the_dependencies() {
    let dependencies = stated_dependencies(&architecture());
    assert!(dependencies.len() >= 12, "the table has all modules: {dependencies:?}");
    let sources = sources(&workspace().join("daemon/src"));
    assert!(sources.len() > 40, "the sources are found");
    let found = violations(&sources, &dependencies);
    assert!(found.is_empty(), "ARCHITECTURE.md forbids:\n{}", found.join("\n"));
}

#[test]
fn the_dependencies_form_no_cycle() {
    assert_eq!(cycle(&stated_dependencies(&architecture())), None);
}

#[test]
fn a_wrong_import_is_found() {
    let dependencies = stated_dependencies(&architecture());
    let planted = Source { path: "clock.rs".to_owned(), code: "use crate::server::accept;\n".to_owned() };
    assert_eq!(violations(&[planted], &dependencies), ["clock.rs: clock must not import server"]);
    let unknown = Source { path: "cellar.rs".to_owned(), code: String::new() };
    assert_eq!(violations(&[unknown], &dependencies).len(), 1);
    let mut round = dependencies;
    round.get_mut("clock").unwrap().insert("server".to_owned());
    assert!(cycle(&round).is_some());
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    for package in ["daemon/src", "protocol/src", "client-lib/src", "client-lib/tokenctl/src"] {
        for source in sources(&workspace().join(package)) {
            let lines = source.code.lines().count();
            assert!(lines <= FILE_LINES_MAX, "{package}/{}: {lines} lines before its tests", source.path);
        }
    }
}

/// Each hop names a file below `daemon/src` and a function in it: `server/accept.rs:serve`.
#[test]
fn the_two_paths_name_functions_that_exist() {
    let document = architecture();
    let paths = [("Path of a request", REQUEST_HOPS_MAX), ("Path of a renewal", RENEWAL_HOPS_MAX)];
    for (heading, most) in paths {
        let steps = section(&document, heading)
            .lines()
            .filter(|line| line.split_once(". `").is_some_and(|(number, _)| number.parse::<u32>().is_ok()));
        let mut hops = 0;
        for step in steps {
            let hop = step.split('`').nth(1).unwrap();
            let (file, function) = hop.split_once(':').unwrap_or_else(|| panic!("{hop}: not file:function"));
            let path = workspace().join("daemon/src").join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
            let is_there = [format!("fn {function}("), format!("fn {function}<")];
            assert!(is_there.iter().any(|text_of| text.contains(text_of)), "{hop}: no such function");
            hops += 1;
        }
        assert!((1..=most).contains(&hops), "{heading}: {hops} hops, {most} at most");
    }
}
