//! The guard process as a program of its own, for tests and for trying things by hand.

fn main() -> std::process::ExitCode {
    millrace_devstack::guard_main(std::env::args_os().skip(1))
}
