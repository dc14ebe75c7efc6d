//! Counts the decisions in the audit trail of a daemon's log.

/// The audit records about some decisions, and how many decisions they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Lines of the log.
    pub lines: u64,
    /// The sum of their counts.
    pub decisions: u64,
}

/// The records about decisions of one kind, `allow` or `deny`, about these users.
///
/// # Panics
/// When a record has no count.
pub fn records(log: &str, decision: &str, is_of: impl Fn(u32) -> bool) -> Records {
    let decision = format!("decision=\"{decision}\"");
    let audited = log.lines().filter(|line| line.contains("tokend::server::audit"));
    let of_kind = audited.filter(|line| line.contains(&decision));
    let about =
        of_kind.filter(|line| number(line, " uid=").is_some_and(|uid| u32::try_from(uid).is_ok_and(&is_of)));
    about.fold(Records::default(), |records, line| Records {
        lines: records.lines + 1,
        decisions: records.decisions + number(line, " count=").expect("every record has a count"),
    })
}

fn number(line: &str, key: &str) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    rest.split(' ').next()?.parse().ok()
}
