//! Completions and manual pages, from the definition of the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, ValueHint};
use clap_complete::aot::{Bash, Fish, Generator, Zsh};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::Args;
use crate::args::{EXIT_STATUS, Shell};

/// The shapes of `--json`, which the manual repeats.
const JSON: &str = include_str!("../JSON.md");

const ENVIRONMENT: &str = "\
TOKEND_SOCKET: the daemon's socket, unless --socket names one.

NO_COLOR: if set to anything, no colours.

JOURNAL_STREAM: set by systemd; get and headers refuse to print a token into the journal.";

/// The functions that list the names. They say nothing if the daemon does not answer.
const BASH_NAMES: &str = "
_tokenctl_names() {
    [[ ${cur} == -* ]] || \"${COMP_WORDS[0]}\" --deadline 1s list 2>/dev/null
}
";
const ZSH_NAMES: &str = "_tokenctl_names() {
    local -a names
    names=(${(f)\"$(command tokenctl --deadline 1s list 2>/dev/null)\"})
    compadd -a names
}

";
const FISH_NAMES: &str = "(command tokenctl --deadline 1s list 2>/dev/null)";

const SEE_ALSO: &str = "tokend(8), systemctl(1), journalctl(1)";

/// The completions for a shell.
pub(crate) fn completions(shell: Shell) -> io::Result<Vec<u8>> {
    let generator: &dyn Generator = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut command = Args::command();
    command.set_bin_name("tokenctl");
    command.build();
    let mut script = Vec::new();
    generator.try_generate(&command, &mut script)?;
    let script = String::from_utf8_lossy(&script).into_owned();
    Ok(with_token_names(shell, script, &command).into())
}

/// Completes the names of tokens too.
fn with_token_names(shell: Shell, script: String, command: &Command) -> String {
    match shell {
        Shell::Bash => {
            takers_of_names(command).iter().fold(script, |script, taker| {
                // `opts` are the words for the place after a command.
                let path: Vec<_> = taker.iter().map(|command| command.get_name()).collect();
                let words = format!("tokenctl__subcmd__{})\n            opts=\"", path.join("__subcmd__"));
                script.replacen(&words, &format!("{words}$(_tokenctl_names) "), 1)
            }) + BASH_NAMES
        }
        Shell::Zsh => {
            let with_name = |line: &str| match line.strip_suffix(":_default' \\") {
                Some(start) if NAME_ARGUMENTS.iter().any(|argument| line.starts_with(argument)) => {
                    format!("{start}:_tokenctl_names' \\\n")
                }
                _ => format!("{line}\n"),
            };
            // The last lines of the script call the functions before them.
            let script: String = script.lines().map(with_name).collect();
            script.replacen("_tokenctl() {", &format!("{ZSH_NAMES}_tokenctl() {{"), 1)
        }
        Shell::Fish => takers_of_names(command).iter().fold(script, |script, taker| {
            let conditions = ["__fish_tokenctl_using_subcommand", "__fish_seen_subcommand_from"];
            let names = taker.iter().map(|command| command.get_name());
            let conditions: Vec<_> =
                conditions.iter().zip(names).map(|(condition, name)| format!("{condition} {name}")).collect();
            let runs_command = |arg: &clap::Arg| arg.get_value_hint() == ValueHint::CommandWithArguments;
            let is_last = taker.last().is_none_or(|command| !command.get_arguments().any(runs_command));
            let files = if is_last { " -f" } else { "" };
            let condition = conditions.join("; and ");
            script + &format!("complete -c tokenctl -n \"{condition}\"{files} -a \"{FISH_NAMES}\"\n")
        }),
    }
}

/// How the arguments for names of tokens begin in the script for zsh.
const NAME_ARGUMENTS: [&str; 3] = ["':name -- ", "'::name -- ", "'*::names -- "];

/// The commands that take the name of a token, each after the command that it belongs to.
fn takers_of_names(command: &Command) -> Vec<Vec<&Command>> {
    let takes_name =
        |command: &&Command| command.get_positionals().any(|arg| arg.get_id().as_str().starts_with("name"));
    let mut takers = Vec::new();
    for outer in command.get_subcommands() {
        takers.extend(outer.get_subcommands().filter(takes_name).map(|inner| vec![outer, inner]));
        takers.extend(Some(outer).filter(takes_name).map(|outer| vec![outer]));
    }
    takers
}

/// The page `tokenctl(1)`.
pub(crate) fn page() -> io::Result<Vec<u8>> {
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let man = titled(command);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    man.render_subcommands_section(&mut text)?;
    verbatim("EXIT STATUS", EXIT_STATUS).to_writer(&mut text)?;
    verbatim("ENVIRONMENT", ENVIRONMENT).to_writer(&mut text)?;
    json_output().to_writer(&mut text)?;
    verbatim("SEE ALSO", SEE_ALSO).to_writer(&mut text)?;
    Ok(text)
}

/// Writes `tokenctl.1` and a page for each command. The error names the file that could not be written.
pub(crate) fn pages(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let place = |name: &str| dir.join(format!("{name}.1"));
    let write = |name: &str, text: io::Result<Vec<u8>>| {
        text.and_then(|text| fs::write(place(name), text)).map_err(|error| (place(name), error))
    };
    write("tokenctl", page())?;
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands() {
        let name = format!("tokenctl-{}", subcommand.get_name());
        write(&name, subpage(subcommand))?;
    }
    Ok(())
}

fn subpage(command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    titled(command.clone().after_help(None::<&str>)).render(&mut text)?;
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        verbatim("EXAMPLES", examples.trim_start_matches("Examples:\n")).to_writer(&mut text)?;
    }
    verbatim("EXIT STATUS", EXIT_STATUS).to_writer(&mut text)?;
    verbatim("SEE ALSO", "tokenctl(1)").to_writer(&mut text)?;
    Ok(text)
}

fn titled(command: Command) -> Man {
    Man::new(command).manual("tokend").section("1")
}

fn verbatim(heading: &str, body: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [heading]).control("nf", []);
    for line in body.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

/// The Markdown of the documentation: its headings become subsections, its examples stay as they are.
fn json_output() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["JSON OUTPUT"]);
    for line in JSON.lines().skip(1) {
        match (line.strip_prefix("## "), line) {
            (Some(heading), _) => roff.control("SS", [heading.replace('`', "").as_str()]),
            (None, "```json") => roff.control("PP", []).control("nf", []),
            (None, "```") => roff.control("fi", []),
            (None, "") => roff.control("PP", []),
            (None, text) => roff.text([roman(text.replace('`', ""))]),
        };
    }
    roff
}
