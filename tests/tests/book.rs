//! The book (`docs/`): each command and each configuration in it is run, and mdBook builds it without a broken link.
//!
//! Each page has a machine of its own, which is booted for it. On the machine, tokend is installed and not configured, `ann` is a
//! user, and there are a provider and an API on loopback. The fenced blocks of the page are run from the top:
//!
//! - `console`: a line that begins with `#` is a command of root, one with `$` a command of ann. It must succeed. Lines below it are
//!   its output; `…` stands for any text. With the word `repeat`, it is run until the output is right.
//! - A block that begins with the path of a file in a comment is written to this file.
//! - A block that includes a program from `docs/examples` is written to ann's home, under the name that the program has there.
//! - `toml` is a whole configuration, or a drop-in of the one before, which `tokend check` must accept.
//! - `json`, `text`, and programs in the documents of a library (which have tests of their own) are only read.
//!
//! What cannot be run has `no_run: REASON` on its first line. A block in an HTML comment prepares the machine unseen. The page
//! `X.md` runs after the blocks of `Y.md` if it has the line `<!-- after Y.md -->`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

#[expect(dead_code, reason = "the suite of systemd uses more of it")]
#[path = "systemd/host.rs"]
mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use host::{Host, PROVIDER};
use tokend_tests::{Finished, process, program, requirement, secrets, wait};

/// The API that programs of the book call.
const API: &str = "http://127.0.0.1:8090/accounts";

/// The configuration of the machine.
const CONFIG: &str = "/etc/tokend/tokend.toml";

/// A configuration that is only checked.
const ALONE: &str = "/tmp/tokend.toml";

/// The languages whose blocks are neither run nor written to a file.
const READ_ONLY: [&str; 5] = ["c", "json", "python", "rust,ignore", "text"];

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    /// Where its first line is, for people.
    place: String,
    /// The line after the backticks.
    info: String,
    text: String,
    /// The file that it includes as a whole.
    included: Option<PathBuf>,
}

impl Block {
    fn language(&self) -> &str {
        self.info.split(' ').next().unwrap_or_default()
    }

    /// Where it is written to.
    fn file(&self) -> Option<String> {
        if let Some(included) = &self.included {
            return Some(format!("/home/ann/{}", included.file_name()?.to_str()?));
        }
        let first = self.text.lines().next()?;
        let path = ["# ", "// "].iter().find_map(|mark| first.strip_prefix(mark))?.split(' ').next()?;
        path.starts_with('/').then(|| path.to_owned())
    }
}

/// `docs/src`.
fn source() -> PathBuf {
    program::workspace().join("docs/src")
}

/// The pages in the summary, in order.
fn pages() -> Vec<String> {
    let summary = fs::read_to_string(source().join("SUMMARY.md")).unwrap();
    let links = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.filter(|link| !link.is_empty()).map(str::to_owned).collect()
}

/// A page with all that it includes.
fn text_of(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("the page is there");
    let line = |line: &str| match included(path, line) {
        Some(document) if document.extension().is_some_and(|extension| extension == "md") => {
            text_of(&document)
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The file that a line includes.
fn included(page: &Path, line: &str) -> Option<PathBuf> {
    let path = line.strip_prefix("{{#include ")?.strip_suffix("}}")?;
    Some(page.with_file_name(path))
}

fn blocks(page: &str) -> Vec<Block> {
    let path = source().join(page);
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text_of(&path).lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(info), None) => {
                let place = format!("{page}, line {}", number + 1);
                open = Some(Block { place, info: info.to_owned(), text: String::new(), included: None });
            }
            (None, Some(block)) => {
                block.included = included(&path, line);
                let text =
                    block.included.as_ref().map(|file| fs::read_to_string(file).expect("the file is there"));
                block.text += &text.unwrap_or_else(|| format!("{line}\n"));
            }
            (None, None) => (),
        }
    }
    assert!(open.is_none(), "{page}: a block has no end");
    found
}

/// The commands of a `console` block, each with its prompt, and the output that is expected of it.
fn commands(text: &str) -> Vec<(char, String, String)> {
    let mut commands: Vec<(char, String, String)> = Vec::new();
    let mut continues = false;
    for line in text.lines() {
        let prompt =
            line.chars().next().filter(|prompt| "#$".contains(*prompt) && line[1..].starts_with(' '));
        if let (Some(prompt), false) = (prompt, continues) {
            commands.push((prompt, line[2..].to_owned(), String::new()));
        } else if let Some((_, command, expected)) = commands.last_mut() {
            let part = if continues { command } else { expected };
            part.push_str(if continues { "\n" } else { "" });
            part.push_str(line);
            part.push_str(if continues { "" } else { "\n" });
        }
        continues = line.ends_with('\\') && commands.last().is_some_and(|(.., expected)| expected.is_empty());
    }
    commands
}

/// Whether the output is as expected, where `…` stands for any text.
fn matches(expected: &str, output: &str) -> bool {
    let mut parts = expected.trim_end().split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = output.trim_end().strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

/// A machine, for the blocks of one page.
struct Reader {
    host: Host,
}

impl Reader {
    fn new() -> Self {
        let library = program::workspace().join("client-lib/python/tokend");
        let api = program::workspace().join("tests/api.py");
        let copies: [(&Path, &str); 2] =
            [(&library, "/usr/lib/python3/dist-packages/tokend"), (&api, "/usr/bin/api.py")];
        let reader = Self { host: Host::boot_with(&copies, &[]) };
        let machine = &reader.host.machine;
        for command in [
            &["systemd-sysusers"][..],
            &["systemd-tmpfiles", "--create"],
            &["useradd", "--create-home", "--shell", "/bin/bash", "ann"],
            &["systemctl", "daemon-reload"],
        ] {
            machine.check(command);
        }
        machine.write("/etc/credstore/psb.secret", &secrets::invent("client-secret"));
        reader.host.start_provider();
        machine.check(&["systemd-run", "--quiet", "--unit=api", "python3", "/usr/bin/api.py", "8090"]);
        reader
    }

    fn read(&self, page: &str) {
        for line in text_of(&source().join(page)).lines() {
            if let Some(before) = line.strip_prefix("<!-- after ").and_then(|rest| rest.strip_suffix(" -->"))
            {
                self.read(before);
            }
        }
        for block in blocks(page) {
            self.take(&block);
        }
    }

    fn take(&self, block: &Block) {
        if let Some((_, reason)) = block.info.split_once("no_run") {
            assert!(reason.len() > ": ".len(), "{}: a reason is missing", block.place);
            return;
        }
        let file = block.file();
        if let Some(file) = &file {
            self.write(file, &block.text);
        }
        match block.language() {
            "console" => self.run(block),
            "toml" => self.check(file.as_deref(), block),
            language => {
                let is_used = file.is_some() || READ_ONLY.contains(&language);
                assert!(is_used, "{}: nothing uses the block; see the top of {}", block.place, file!());
            }
        }
    }

    fn write(&self, file: &str, text: &str) {
        let machine = &self.host.machine;
        machine.write(file, text);
        let mode = if text.starts_with("#!") { "0755" } else { "0644" };
        machine.check(&["chmod", mode, file]);
        if file.starts_with("/home/ann/") {
            machine.check(&["chown", "ann:", file]);
        }
        // The providers of the book are elsewhere; those of the machine are on loopback.
        if file == CONFIG {
            let names = text.lines().filter_map(|line| line.strip_prefix("[provider.")?.strip_suffix(']'));
            let endpoint =
                |name| format!("[provider.{name}]\ntoken_endpoint = \"http://{PROVIDER}/token\"\n");
            self.write("/etc/tokend/tokend.toml.d/loopback.toml", &names.map(endpoint).collect::<String>());
        }
    }

    /// A drop-in counts with the configuration that it belongs to. A block without a file is on its own.
    fn check(&self, file: Option<&str>, block: &Block) {
        if file.is_none() {
            self.write(ALONE, &block.text);
        }
        let config = if file.is_some() { CONFIG } else { ALONE };
        let checked = self.host.machine.run(&["tokend", "check", "--config", config]);
        assert_eq!(checked.code, 0, "{}: {checked:?}", block.place);
    }

    fn run(&self, block: &Block) {
        let repeats = block.info.split(' ').any(|word| word == "repeat");
        for (prompt, command, expected) in commands(&block.text) {
            let run = || {
                let script =
                    format!("exec 2>&1; cd; API={API}; TOKEN_ENDPOINT=http://{PROVIDER}/token; {command}\n");
                match prompt {
                    '#' => self.host.machine.run(&["sh", "-c", &script]),
                    _ => self.host.machine.run_as("ann", &["bash", "-c", &script]),
                }
            };
            let is_right =
                |ran: &Finished| ran.code == 0 && (expected.is_empty() || matches(&expected, &ran.stdout));
            let mut ran = run();
            if repeats {
                wait::within(wait::PATIENCE, || {
                    if !is_right(&ran) {
                        ran = run();
                    }
                    is_right(&ran).then_some(())
                });
            }
            assert!(
                is_right(&ran),
                "{}: `{command}` ended with {} and printed\n{}instead of\n{expected}",
                block.place,
                ran.code,
                ran.stdout
            );
        }
    }
}

/// Runs a page, if this machine has what the page needs.
fn run(page: &str) {
    let text = text_of(&source().join(page));
    let needs = text.lines().filter_map(|line| line.strip_prefix("<!-- needs ")?.strip_suffix(" -->"));
    let has_all = needs.flat_map(str::split_whitespace).all(requirement::program);
    if has_all && requirement::root() {
        Reader::new().read(page);
    }
}

/// One test for each page.
macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        const PAGES: &[&str] = &[$($page),*];
        $(#[test] fn $test() { run($page); })*
    };
}

pages! {
    quick_start: "quick-start.md",
    python: "howto/python.md",
    go: "howto/go.md",
    java: "howto/java.md",
    dotnet: "howto/dotnet.md",
    node: "howto/node.md",
    c: "howto/c.md",
    rust: "howto/rust.md",
    shell: "howto/shell.md",
    nginx: "howto/nginx.md",
    git: "howto/git.md",
    kubectl: "howto/kubectl.md",
    registry: "howto/registry.md",
    google: "howto/google.md",
    credential: "howto/credential.md",
    file: "howto/file.md",
    proxy: "howto/proxy.md",
    container: "howto/container.md",
    add_a_token: "howto/init.md",
    rotate: "howto/rotate.md",
    move_to_another_host: "howto/move.md",
    egress: "howto/egress.md",
    watch_with_prometheus: "howto/metrics.md",
    refusal: "howto/refusal.md",
    econnect_psb: "howto/econnect-psb.md",
    bnpparibas_cib: "howto/bnpparibas-cib.md",
    partner_api: "howto/partner-api.md",
    aritma_psd2: "howto/aritma-psd2.md",
    cube_connect: "howto/cube-connect.md",
    configuration: "daemon/CONFIGURATION.md",
    command_line: "reference/command-line.md",
    http: "daemon/HTTP.md",
    protocol: "protocol/PROTOCOL.md",
    json: "client-lib/tokenctl/JSON.md",
    metrics: "reference/metrics.md",
    audit_trail: "reference/audit-trail.md",
    proxy_reference: "client-lib/proxy/README.md",
    python_library: "client-lib/python/README.md",
    c_library: "client-lib/c/README.md",
    systems: "reference/systems.md",
    security: "SECURITY.md",
    architecture: "ARCHITECTURE.md",
    performance: "performance.md",
    changes: "CHANGELOG.md",
}

#[test]
fn every_page_is_run() {
    assert_eq!(pages(), PAGES);
}

/// The values of an attribute in the elements of a page.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    html.split(&format!(" {name}=\"")).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// The links of a built page that lead nowhere in the book.
fn broken_links(page: &Path) -> Vec<String> {
    let leads = |link: &str| {
        let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { page.to_owned() } else { page.with_file_name(path) };
        let is_id = || {
            let html = fs::read_to_string(&target).unwrap_or_default();
            attributes(&html, "id").contains(&fragment)
        };
        target.is_file() && (fragment.is_empty() || is_id())
    };
    let html = fs::read_to_string(page).unwrap();
    // Links to elsewhere have a scheme.
    let links = attributes(&html, "href").into_iter().filter(|link| !link.contains(':') && !leads(link));
    links.map(|link| format!("{}: {link}", page.display())).collect()
}

#[test]
fn the_book_has_no_broken_link() {
    if !requirement::program("mdbook") {
        return;
    }
    let built = tempfile::tempdir().unwrap();
    let mut mdbook = Command::new("mdbook");
    mdbook.arg("build").arg(program::workspace().join("docs")).arg("--dest-dir").arg(built.path());
    let finished = process::run(&mut mdbook, wait::PATIENCE);
    let log = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.code == 0 && !log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let built = |page: &String| built.path().join(page).with_extension("html");
    let broken: Vec<String> = pages().iter().flat_map(|page| broken_links(&built(page))).collect();
    assert_eq!(broken, [""; 0]);
}
