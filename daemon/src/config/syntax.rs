//! Finds every syntax error of a file, each once. The TOML parser gives up on the rest of a file at some errors and
//! stumbles on at others, so the statement at the first error is reported, taken out, and the rest
//! is parsed again. Messages are the parser's descriptions, which are fixed texts without any of the file.

use toml::de::{DeTable, Error};

/// Statements that are taken out of one file at most; a file with more errors is no TOML.
const BROKEN_MAX: usize = 50;
/// Lines looked through for the beginning of a broken statement.
const BACK_MAX: usize = 400;
/// Lines that a broken statement may be taken to extend over.
const EXTENT_MAX: usize = 24;

/// A file without its broken statements, line for line.
#[derive(Debug)]
pub(super) struct Healed {
    pub(super) text: String,
    pub(super) broken: Vec<Broken>,
    pub(super) duplicates: Vec<Duplicate>,
    /// Lines of headers that could not be read; what follows them belongs to no section.
    pub(super) lost_headers: Vec<usize>,
    /// Whether some of the file was not read at all.
    pub(super) incomplete: bool,
}

/// A syntax error.
#[derive(Debug)]
pub(super) struct Broken {
    /// The line of the error.
    pub(super) line: usize,
    /// The line on which the broken statement begins.
    pub(super) statement: usize,
    pub(super) message: String,
}

/// A key or section that the same file has already.
#[derive(Debug)]
pub(super) struct Duplicate {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) message: String,
}

/// Takes the broken statements out of `text`.
pub(super) fn heal(text: &str) -> Healed {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut healed = Healed {
        text: String::new(),
        broken: Vec::new(),
        duplicates: Vec::new(),
        lost_headers: Vec::new(),
        incomplete: false,
    };
    for _ in 0..=BROKEN_MAX {
        let joined = lines.join("\n");
        let errors = errors(&joined);
        let Some(first) = errors.iter().filter(|error| !is_duplicate(error)).min_by_key(|error| start(error))
        else {
            healed.duplicates = duplicates(&joined, &errors);
            healed.text = joined;
            return healed;
        };
        let at = line_at(&line_starts(&joined), start(first));
        healed.take_out(&mut lines, at, first.message());
    }
    healed.give_up();
    healed
}

impl Healed {
    fn give_up(&mut self) {
        if let Some(last) = self.broken.last_mut() {
            last.message.push_str("; after so many syntax errors the rest of the file was not looked at");
        }
        self.lost_headers.clear();
        self.incomplete = true;
    }

    /// Replaces the statement that the error on line `at` belongs to.
    fn take_out(&mut self, lines: &mut [String], at: usize, message: &str) {
        let begin = statement_begin(lines, at);
        let (end, closer) = statement_end(lines, begin);
        let Some(statement) = lines.get_mut(begin - 1..end) else { return };
        let seen = self.broken.iter().any(|broken| broken.statement == begin);
        let substitute = if seen { Substitute::default() } else { substitute(statement) };
        if substitute.lost_header {
            self.lost_headers.push(begin);
        }
        for line in statement.iter_mut() {
            line.clear();
        }
        if let Some(line) = statement.first_mut() {
            *line = substitute.text;
        }
        if seen {
            return;
        }
        let (line, message) = match closer {
            Some(closer) if at > end => {
                (begin, format!("syntax error: nothing closes this value, expected `{closer}`"))
            }
            _ => (at.min(end), format!("syntax error: {message}")),
        };
        self.broken.push(Broken { line, statement: begin, message });
    }
}

fn errors(text: &str) -> Vec<Error> {
    DeTable::parse_recoverable(text).1
}

fn start(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

/// Errors of meaning, at which the parser goes on with all that follows.
fn is_duplicate(error: &Error) -> bool {
    error.message() == "duplicate key" || error.message().starts_with("cannot extend")
}

fn is_broken(text: &str) -> bool {
    errors(text).iter().any(|error| !is_duplicate(error))
}

/// The last line up to `at` before which all is well. The parser may notice an open bracket or quotation mark
/// only some lines later.
fn statement_begin(lines: &[String], at: usize) -> usize {
    let earliest = at.saturating_sub(BACK_MAX).max(1);
    let whole_before =
        |line: &usize| lines.get(..line - 1).is_some_and(|before| !is_broken(&before.join("\n")));
    (earliest..=at).rev().find(whole_before).unwrap_or(at)
}

/// The line that ends the statement which begins on `begin`: the same, unless it leaves something open. Also
/// what would close that.
fn statement_end(lines: &[String], begin: usize) -> (usize, Option<&'static str>) {
    let Some(first) = lines.get(begin - 1) else { return (begin, None) };
    let Some(closer) = open_closer(first) else { return (begin, None) };
    let mut end = begin;
    for (index, line) in lines.iter().enumerate().skip(begin).take(EXTENT_MAX) {
        if line.trim_start().starts_with(closer) || (closer.len() == 3 && line.contains(closer)) {
            return (index + 1, Some(closer));
        }
        if is_header(line.trim()) || (is_assignment(line) && indentation(line) <= indentation(first)) {
            return (end, Some(closer));
        }
        end = index + 1;
    }
    (begin, Some(closer))
}

/// What would close the bracket or the long string that is open at the end of `line`.
fn open_closer(line: &str) -> Option<&'static str> {
    let long = ["\"\"\"", "'''"].into_iter().find(|quotes| line.matches(quotes).count() == 1);
    if long.is_some() {
        return long;
    }
    let mut open = Vec::new();
    let mut quote = None;
    for c in line.chars() {
        match c {
            '"' | '\'' if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            '#' if quote.is_none() => break,
            '[' if quote.is_none() => open.push("]"),
            '{' if quote.is_none() => open.push("}"),
            ']' | '}' if quote.is_none() => drop(open.pop()),
            _ => (),
        }
    }
    open.first().copied()
}

fn is_assignment(line: &str) -> bool {
    let key = line.split('=').next().map_or("", str::trim);
    key != line.trim() && !key.is_empty() && errors(&format!("{key} = false")).is_empty()
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[derive(Default)]
struct Substitute {
    text: String,
    lost_header: bool,
}

/// What stands in for a broken statement, so that what belongs to it is not reported as missing: its key with
/// any value, or its header with brackets.
fn substitute(statement: &[String]) -> Substitute {
    let first = statement.first().map_or("", |line| line.trim());
    if first.starts_with('[') || (first.ends_with(']') && !first.contains('=')) {
        return header_substitute(first);
    }
    let before = |separator| first.split(separator).next().unwrap_or_default().trim();
    let stand_in = |key| format!("{key} = false");
    // The equals sign may be there, be another sign, or be missing.
    let text = ["=", ":", " "].into_iter().map(before).map(stand_in).find(|text| errors(text).is_empty());
    Substitute { text: text.unwrap_or_default(), lost_header: false }
}

fn header_substitute(line: &str) -> Substitute {
    let name = line.trim_start_matches('[').split([']', '#']).next().unwrap_or_default().trim();
    let text = format!("[{name}]");
    if errors(&text).is_empty() && !line.starts_with("[[") {
        return Substitute { text, lost_header: false };
    }
    // An array of tables, because there may be more than one.
    Substitute { text: "[[\"lost header\"]]".to_owned(), lost_header: true }
}

/// Reports each line with a duplicate once, and of a section given twice its header alone.
fn duplicates(text: &str, errors: &[Error]) -> Vec<Duplicate> {
    let starts = line_starts(text);
    let lines: Vec<&str> = text.split('\n').collect();
    let mut found: Vec<Duplicate> = Vec::new();
    let mut repeated_headers = Vec::new();
    let mut errors: Vec<&Error> = errors.iter().filter(|error| is_duplicate(error)).collect();
    errors.sort_by_key(|error| start(error));
    for error in errors {
        let line = line_at(&starts, start(error));
        let header = header_of(&lines, line);
        if found.iter().any(|duplicate| duplicate.line == line) {
            continue;
        }
        if let Some((_, name)) = header.filter(|(header_line, _)| *header_line == line) {
            repeated_headers.push(line);
            let message = "given twice in this file; keep one, with the keys of both".to_owned();
            found.push(Duplicate { line, key: name.to_owned(), message });
        } else if header.is_none_or(|(header_line, _)| !repeated_headers.contains(&header_line)) {
            let name = error.span().and_then(|span| text.get(span)).unwrap_or_default();
            let key = duplicate_key(header.map(|(_, section)| section), lines.get(line - 1).copied(), name);
            let message = "set twice in this file; keep one".to_owned();
            found.push(Duplicate { line, key, message });
        }
    }
    found
}

/// The dotted key of a duplicate `name`, which is that of its line or within an inline table there.
fn duplicate_key(section: Option<&str>, line: Option<&str>, name: &str) -> String {
    let outer = line.and_then(|line| line.split('=').next()).map_or("", str::trim);
    let outer = Some(outer).filter(|outer| *outer != name && !outer.ends_with(&format!(".{name}")));
    let parts = section.into_iter().chain(outer).chain([name]);
    parts.collect::<Vec<_>>().join(".")
}

/// The header that `line` stands below or is, with its line.
fn header_of<'a>(lines: &[&'a str], line: usize) -> Option<(usize, &'a str)> {
    let above = lines.get(..line)?.iter().enumerate().rev();
    let (index, header) =
        above.map(|(index, text)| (index, text.trim())).find(|(_, text)| is_header(text))?;
    let name = header.trim_start_matches('[').split(']').next().unwrap_or_default();
    Some((index + 1, name.trim()))
}

fn is_header(line: &str) -> bool {
    line.starts_with('[') && line.contains(']') && errors(line).is_empty()
}

/// The offset at which each line begins.
pub(super) fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect()
}

/// The line that has `offset`, counted from 1.
pub(super) fn line_at(line_starts: &[usize], offset: usize) -> usize {
    line_starts.partition_point(|start| *start <= offset).max(1)
}
