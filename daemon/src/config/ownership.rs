//! Warns of files, folders and links that other users own or can write, and that decide what the daemon reads. Such a user
//! can have secrets sent anywhere.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nix::unistd::geteuid;

use super::fault::{Place, Sink};

/// The number of links that the kernel follows in one path.
const LINKS_MAX: usize = 40;

const STICKY: u32 = 0o1000;

/// Warns of everything on the way to `path`, links included. If `path` does not exist, other users must not be able to
/// create it.
pub(super) fn warn_of_others(path: &Path, sink: &Sink) {
    let Ok(path) = std::path::absolute(path) else { return };
    // What is left of the path, the next component last.
    let mut rest = reversed(&path);
    let (mut at, mut links) = (PathBuf::new(), 0);
    while let Some(name) = rest.pop() {
        // `..` of a folder that was reached through a link is the folder above the link's target.
        let next = if name == ".." { at.parent().unwrap_or(&at).to_owned() } else { at.join(name) };
        let Ok(metadata) = next.symlink_metadata() else {
            if let Some(folder) = at.symlink_metadata().ok().filter(|folder| folder.mode() & STICKY != 0) {
                warn(&at, &folder, 0o022, sink);
            }
            return;
        };
        if let Ok(target) = next.read_link() {
            warn(&next, &metadata, 0, sink);
            links += 1;
            if links > LINKS_MAX {
                return;
            }
            rest.extend(reversed(&target));
            continue;
        }
        // In a sticky folder, other users can only create new files.
        let is_shared = metadata.is_dir() && metadata.mode() & STICKY != 0 && !rest.is_empty();
        warn(&next, &metadata, if is_shared { 0 } else { 0o022 }, sink);
        at = next;
    }
}

fn reversed(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.rev().map(|part| part.as_os_str().to_owned()).collect()
}

/// Warns of one file, folder or link if another user owns it or its mode has any of the bits `writable`.
fn warn(path: &Path, metadata: &Metadata, writable: u32, sink: &Sink) {
    let (owner, mode, shown) = (metadata.uid(), metadata.mode() & 0o7777, path.display());
    let kind = if metadata.is_dir() {
        "folder"
    } else if metadata.is_symlink() {
        "link"
    } else {
        "file"
    };
    let message = if owner != 0 && owner != geteuid().as_raw() {
        format!("user {owner} owns this {kind} and so can have secrets sent anywhere; chown -h root {shown}")
    } else if mode & writable != 0 {
        format!(
            "users other than its owner can write this {kind} (mode {mode:04o}) and so have secrets sent anywhere; \
             chmod go-w {shown}"
        )
    } else {
        return;
    };
    sink.warn(&Place { file: Arc::from(path), line: None, column: None }, "", message);
}
