//! The `oxenfs` command; called as `mount.oxenfs` or `umount.fuse.oxenfs`, the helper of `mount(8)` or `umount(8)`.

fn main() -> std::process::ExitCode {
    oxenfs::cli::main()
}
