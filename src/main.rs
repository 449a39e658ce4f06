//! The `oxenfs` command; called as `mount.oxenfs`, the fstab helper.

fn main() -> std::process::ExitCode {
    oxenfs::cli::main()
}
