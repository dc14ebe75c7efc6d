//! The program `tokenctl`. Its code is in the library of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    tokenctl::main(&std::env::args_os().collect::<Vec<_>>())
}
