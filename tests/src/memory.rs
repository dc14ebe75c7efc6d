//! The memory of a live process, read as root reads it, and the search for secrets in it.
//!
//! A secret is looked for by each half of its random part, so that one which is half overwritten is found as well,
//! and in the encodings in which a token request carries it. What is found is told by kind and place, never by value.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;

const PAGE: usize = 4096;

/// Shorter needles would be found by chance.
const SHORTEST: usize = 8;

/// What is looked for.
#[derive(Clone, Debug, Default)]
pub struct Needles {
    secrets: usize,
    forms: Vec<(String, Vec<u8>)>,
    /// By their first two bytes: the forms that begin so.
    starts: BTreeMap<[u8; 2], Vec<usize>>,
}

/// A mapping of a process.
#[derive(Clone, Debug)]
struct Mapping {
    start: u64,
    end: u64,
    name: String,
}

/// How often each kind of secret was found, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    places: BTreeMap<String, Vec<String>>,
    /// How many bytes were searched.
    pub searched: usize,
}

impl Needles {
    /// Adds a secret in every form in which it could be met.
    ///
    /// # Panics
    /// When it is too short to be told from chance.
    pub fn add(&mut self, kind: &str, secret: &str) {
        self.secrets += 1;
        let random = secret.get(..32).filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let (first, second) = random.map_or((secret, secret), |random| random.split_at(16));
        self.push(&format!("{kind}, first half"), first.as_bytes());
        if second != first {
            self.push(&format!("{kind}, second half"), second.as_bytes());
        }
        let hexadecimal = first.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        self.push(&format!("{kind}, hexadecimal"), hexadecimal.as_bytes());
        let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        if encoded != secret {
            self.push(&format!("{kind}, form-encoded"), encoded.as_bytes());
        }
        // What precedes a text decides how base64 divides it. The characters at the ends depend on neighbours.
        for (before, cut) in [("", 0), ("x", 2), ("xx", 3)] {
            let encoded = BASE64_STANDARD_NO_PAD.encode(format!("{before}{secret}"));
            let inner = encoded.get(cut..encoded.len().saturating_sub(2)).unwrap_or_default();
            self.push(&format!("{kind}, base64"), inner.as_bytes());
        }
    }

    /// How many secrets are looked for.
    pub fn secrets(&self) -> usize {
        self.secrets
    }

    fn push(&mut self, kind: &str, form: &[u8]) {
        assert!(form.len() >= SHORTEST, "{kind}: {} bytes would be found by chance", form.len());
        self.starts.entry([form[0], form[1]]).or_default().push(self.forms.len());
        self.forms.push((kind.to_owned(), form.to_vec()));
    }

    /// Looks for all of them in some bytes.
    pub fn search(&self, place: &str, bytes: &[u8], findings: &mut Findings) {
        findings.searched += bytes.len();
        let mut begins = vec![false; 1 << 16];
        self.starts.keys().for_each(|start| begins[usize::from(u16::from_le_bytes(*start))] = true);
        for (at, pair) in bytes.windows(2).enumerate() {
            let start = [pair[0], pair[1]];
            if !begins[usize::from(u16::from_le_bytes(start))] {
                continue;
            }
            for &index in &self.starts[&start] {
                let (kind, form) = &self.forms[index];
                if bytes[at..].starts_with(form) {
                    findings.places.entry(kind.clone()).or_default().push(place.to_owned());
                }
            }
        }
    }
}

impl Findings {
    /// How often secrets of kinds that begin so were found.
    pub fn count(&self, kind: &str) -> usize {
        let of_kind = self.places.iter().filter(|(known, _)| known.starts_with(kind));
        of_kind.map(|(_, places)| places.len()).sum()
    }

    /// How often anything was found.
    pub fn total(&self) -> usize {
        self.count("")
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB searched, {} found", self.searched / 1024, self.total())?;
        for (kind, places) in &self.places {
            write!(f, "\n  {kind}: {} ({})", places.len(), places.join(", "))?;
        }
        Ok(())
    }
}

/// Searches every mapping of a process that can be read.
///
/// # Panics
/// When the process is gone or may not be read.
pub fn search(pid: u32, needles: &Needles) -> Findings {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of the process can be read");
    let mut findings = Findings::default();
    for mapping in mappings(pid) {
        for (place, bytes) in written_pages(&memory, &mapping) {
            needles.search(&place, &bytes, &mut findings);
        }
    }
    findings
}

/// Searches what the kernel keeps for a process outside of its mappings: the files that it has open, its environment
/// and its command line.
///
/// # Panics
/// When the process is gone or may not be looked into.
pub fn search_files(pid: u32, needles: &Needles) -> Findings {
    let mut findings = Findings::default();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process has descriptors");
    let open = descriptors.filter_map(|entry| Some(entry.ok()?.path()));
    let others = ["environ", "cmdline"].map(|name| PathBuf::from(format!("/proc/{pid}/{name}")));
    // A socket or a pipe is not read: it is on its way to somebody else.
    for path in open.filter(|path| path.metadata().is_ok_and(|file| file.is_file())).chain(others) {
        let target = fs::read_link(&path).unwrap_or_else(|_| path.clone());
        if let Ok(bytes) = fs::read(&path) {
            needles.search(&target.display().to_string(), &bytes, &mut findings);
        }
    }
    findings
}

/// Searches every file below a directory.
///
/// # Panics
/// When it cannot be read.
pub fn search_directory(directory: &Path, needles: &Needles, findings: &mut Findings) {
    for entry in fs::read_dir(directory).expect("the directory can be read") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            search_directory(&path, needles, findings);
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            needles.search(&path.display().to_string(), &bytes, findings);
        }
    }
}

/// The most memory that a process has had so far, in KiB (`VmHWM` of `proc_pid_status(5)`). `None` once it has ended.
pub fn peak_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn mappings(pid: u32) -> Vec<Mapping> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process has mappings");
    maps.lines().filter_map(mapping).collect()
}

/// A line of `/proc/PID/maps` (`proc_pid_maps(5)`), of a mapping that can be read and is not the kernel's own.
fn mapping(line: &str) -> Option<Mapping> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let mode = words.next()?;
    let name = words.nth(3).unwrap_or("anonymous").to_owned();
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let is_kernels = name.starts_with("[v");
    (mode.starts_with('r') && !is_kernels).then_some(Mapping { start, end, name })
}

/// The runs of pages that are not all zero. Stacks and arenas are for the most part.
fn written_pages(memory: &File, mapping: &Mapping) -> Vec<(String, Vec<u8>)> {
    const ZERO: [u8; PAGE] = [0; PAGE];
    let mut runs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut follows = false;
    for address in (mapping.start..mapping.end).step_by(PAGE) {
        let mut page = [0; PAGE];
        let written = memory.read_exact_at(&mut page, address).is_ok() && page != ZERO;
        match runs.last_mut() {
            Some((_, run)) if written && follows => run.extend_from_slice(&page),
            _ if written => {
                runs.push((format!("{}+{:#x}", mapping.name, address - mapping.start), page.to_vec()));
            }
            _ => (),
        }
        follows = written;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_holds_is_found_in_it_in_each_form() {
        let secret = format!("{:016x}{:016x}-held +/", fastrand::u64(..), fastrand::u64(..));
        let mut needles = Needles::default();
        needles.add("held", &secret);
        let forms = [
            secret.clone(),
            BASE64_STANDARD_NO_PAD.encode(format!("client:{secret}")),
            form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
        ];
        let mut findings = Findings::default();
        for form in &forms {
            needles.search("a text", form.as_bytes(), &mut findings);
        }
        for form in ["first half", "second half", "base64", "form-encoded"] {
            assert!(findings.count(&format!("held, {form}")) >= 1, "{form}: {findings}");
        }
        let of_process = search(std::process::id(), &needles);
        assert!(of_process.count("held, first half") >= 2, "{of_process}");
    }

    #[test]
    fn the_kernels_own_mappings_and_closed_ones_are_left_out() {
        let names = |line| mapping(line).map(|mapping| mapping.name);
        assert_eq!(names("7f00-7f10 rw-p 00000000 00:00 0 "), Some("anonymous".to_owned()));
        assert_eq!(names("7f00-7f10 rw-p 00000000 00:00 0    [heap]"), Some("[heap]".to_owned()));
        assert_eq!(names("7f00-7f10 ---p 00000000 00:00 0 "), None);
        assert_eq!(names("7f00-7f10 r--p 00000000 00:00 0    [vvar]"), None);
    }
}
