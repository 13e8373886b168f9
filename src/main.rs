//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    keyferry::run().into()
}
