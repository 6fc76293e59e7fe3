//! The `tierce` binary: all of it is in `tierce-cli`.

fn main() -> std::process::ExitCode {
    tierce_cli::main()
}
