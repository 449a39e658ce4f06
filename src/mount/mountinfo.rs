//! The kernel's table of mounts, `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The filesystem's subtype, so that the kernel's table says `fuse.oxenfs`.
pub const FS_NAME: &str = "oxenfs";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub mountpoint: PathBuf,
    /// Filesystem type, for example `ext4` or `fuse.oxenfs`.
    pub fs_type: String,
    /// What is mounted there, as the filesystem names it.
    pub source: String,
}

impl Mount {
    /// Whether oxenfs made it. A kernel or helper that drops the subtype still shows the source.
    pub fn is_ours(&self) -> bool {
        let ours = self.source == FS_NAME || self.source.starts_with("oxenfs:");
        self.fs_type == "fuse.oxenfs" || (self.fs_type == "fuse" && ours)
    }

    /// Whether a process serves it, which may be stopped.
    pub fn is_of_process(&self) -> bool {
        matches!(&*self.fs_type, "fuse" | "fuseblk") || self.fs_type.starts_with("fuse.")
    }
}

/// All mounts that this process sees, lowest first.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount at exactly `mountpoint`, a path without symbolic links.
///
/// # Errors
/// As [`all`].
pub fn top(mountpoint: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.mountpoint == mountpoint))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/sda1 rw`: any number of fields before the dash.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mountpoint = fields.nth(4)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mount {
        mountpoint: OsString::from_vec(unescape(mountpoint)).into(),
        fs_type: text(after.next()?),
        source: text(after.next()?),
    })
}

/// Undoes `\040` and the like: the kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if byte == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart_whatever_optional_fields_they_have() {
        let table = b"23 28 0:21 / /proc rw,nosuid - proc proc rw\n\
            61 28 0:52 / /mnt/my\\040cats rw,nosuid,nodev shared:7 master:2 - fuse.oxenfs oxenfs:http://h/ox/cats rw\n\
            62 61 0:53 / /mnt/my\\040cats rw - ext4 /dev/sd\\134x rw\n\
            broken line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].fs_type, "proc");
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/my cats"));
        assert!(mounts[1].is_ours());
        assert_eq!(mounts[2].source, "/dev/sd\\x");
        assert!(!mounts[2].is_ours());
    }

    #[test]
    fn only_whole_octal_escapes_are_undone() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"a\\040b\\011c\\012d\\134e", b"a b\tc\nd\\e"),
            (b"\\04", b"\\04"),
            (b"\\0a0", b"\\0a0"),
            (b"\\377", b"\xff"),
            (b"\\777", b"\\777"),
            (b"\\", b"\\"),
        ];
        for (escaped, plain) in cases {
            assert_eq!(unescape(escaped), plain, "{escaped:?}");
        }
    }

    #[test]
    fn a_foreign_fuse_mount_is_not_ours() {
        let mount = |fs_type: &str, source: &str| Mount {
            mountpoint: "/mnt".into(),
            fs_type: fs_type.into(),
            source: source.into(),
        };
        assert!(mount("fuse", "oxenfs").is_ours());
        assert!(!mount("fuse", "sshfs").is_ours());
        assert!(!mount("fuse.rclone", "oxenfs").is_ours());
        assert!(!mount("ext4", "oxenfs:x").is_ours());
    }
}
