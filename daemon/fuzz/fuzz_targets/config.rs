//! Any text as a configuration: it is accepted, or every fault is one line that names a line of the file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tokend::config::parse;

fuzz_target!(|text: &str| {
    let lines = text.lines().count().max(1);
    let faults = match parse(Path::new("/etc/tokend/tokend.toml"), text) {
        Ok(loaded) => loaded.warnings,
        Err(faults) => faults,
    };
    for fault in faults {
        assert!(fault.place.line.is_none_or(|line| (1..=lines).contains(&line)), "{fault}");
        let shown = fault.to_string();
        assert!(!shown.contains('\n'), "{shown:?}");
    }
});
