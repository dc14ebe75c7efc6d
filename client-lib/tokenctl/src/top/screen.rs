//! The terminal as a screen: its alternate buffer, keys without Enter, and the way back in every case.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use crate::failure::Failure;
use crate::output;

/// The alternate buffer, without a cursor and without line wrapping.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The longest wait for a key in milliseconds, and so the longest delay until an answer of the daemon is shown.
const KEY_WAIT: u8 = 100;

/// The settings of the terminal before there was a screen.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The size of a terminal, in characters.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// Whether there is a terminal to read keys from and to draw on.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal() && !output::is_dumb()
}

/// The size of the terminal, or a usual one if it has none.
pub(super) fn size() -> Size {
    match terminal_size::terminal_size() {
        Some((width, height)) if width.0 > 0 && height.0 > 0 => {
            Size { width: width.0.into(), height: height.0.into() }
        }
        _ => Size { width: 80, height: 24 },
    }
}

/// The terminal while it is a screen. Dropping it restores the terminal, and so does a panic of any thread.
pub(super) struct Screen {
    shown: String,
}

impl Screen {
    pub(super) fn open() -> Result<Self, Failure> {
        static RESTORE_AT_PANICS: Once = Once::new();
        RESTORE_AT_PANICS.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut settings = before.clone();
        settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let screen = Self { shown: String::new() };
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings).map_err(failed)?;
        output::write(ENTER)?;
        Ok(screen)
    }

    /// Draws a text, unless it is on the screen already.
    pub(super) fn show(&mut self, text: &str) -> Result<(), Failure> {
        if self.shown != text {
            // Writing over the last text does not flicker, as clearing the screen would.
            output::write(&format!("\x1b[H{}\x1b[K\x1b[J", text.replace('\n', "\x1b[K\n")))?;
            text.clone_into(&mut self.shown);
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Waits for a key or a signal. Returns whether the key is `q`, or the terminal is gone.
pub(super) fn is_quit() -> Result<bool, Failure> {
    let stdin = io::stdin();
    let mut keys = [0; 64];
    match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], KEY_WAIT) {
        Ok(0) | Err(Errno::EINTR) => Ok(false),
        Ok(_) => match read(&stdin, &mut keys) {
            Ok(0) | Err(Errno::EIO) => Ok(true),
            Ok(read) => Ok(keys.iter().take(read).any(|key| *key == b'q')),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(false),
            Err(error) => Err(failed(error)),
        },
        Err(error) => Err(failed(error)),
    }
}

/// Makes the terminal what it was before the screen, once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = io::stdout().lock().write_all(LEAVE.as_bytes()).and_then(|()| io::stdout().flush());
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

/// The signals that end or suspend the program, which restores the terminal first.
pub(super) struct Signals {
    end: Arc<AtomicBool>,
    /// Readable while there is a signal to suspend. It is blocked and has no handler, so that the kernel suspends the program only
    /// if a shell can continue it.
    suspend: SignalFd,
}

impl Signals {
    /// Call it before other threads start: they must block the same signals.
    pub(super) fn register() -> io::Result<Self> {
        let end = Arc::default();
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            flag::register(signal, Arc::clone(&end))?;
        }
        let suspend = SigSet::from(Signal::SIGTSTP);
        suspend.thread_block()?;
        Ok(Self { end, suspend: SignalFd::with_flags(&suspend, SfdFlags::SFD_CLOEXEC)? })
    }

    pub(super) fn end(&self) -> bool {
        self.end.load(Ordering::SeqCst)
    }

    pub(super) fn suspend(&self) -> bool {
        poll(&mut [PollFd::new(self.suspend.as_fd(), PollFlags::POLLIN)], 0_u8).is_ok_and(|ready| ready > 0)
    }
}

/// Lets the signal through, which stops the program until a shell continues it.
pub(super) fn suspend() -> Result<(), Failure> {
    let signal = SigSet::from(Signal::SIGTSTP);
    signal
        .thread_unblock()
        .and_then(|()| signal.thread_block())
        .map_err(|error| Failure::signals(&error.into()))
}

fn failed(error: Errno) -> Failure {
    Failure::terminal(&format!("cannot use the terminal: {error}"))
}
