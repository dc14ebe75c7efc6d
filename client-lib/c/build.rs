//! Gives the shared library its name for the dynamic linker. Programs that are linked with one version run with every later one
//! of the same number.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libtokend.so.0");
}
