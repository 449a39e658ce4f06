//! What the process was started with, in one value, so that tests need not touch the process's own.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};

use super::{ConfigError, KEYS, Secret};

/// What settings depend on beside the command line.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `OXEN_SERVER`.
    pub server: Option<String>,
    /// `OXEN_API_KEY`.
    pub api_key: Option<Secret>,
    /// `OXEN_API_KEY_FILE`.
    pub api_key_file: Option<PathBuf>,
    /// `OXENFS_LOG`.
    pub log: Option<String>,
    /// `OXENFS_SPOOL_LIMIT` and the others: settings by their names.
    pub settings: BTreeMap<&'static str, String>,
    /// The configuration files, whether they are there or not: what the first says counts.
    pub config_files: Vec<PathBuf>,
    /// `OXEN_CONFIG_DIR`.
    pub oxen_config_dir: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The user's login name; `uidN` when there is none.
    pub user: String,
    /// This machine's name.
    pub host: String,
}

impl Environment {
    /// This process's.
    pub fn of_process() -> Self {
        let text = |key| std::env::var(key).ok().filter(|value: &String| !value.trim().is_empty());
        let path = |key| {
            let value: Option<OsString> = std::env::var_os(key);
            value.map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let uid = rustix::process::geteuid().as_raw();
        let (user, pw_home) = passwd(uid).unzip();
        let home = path("HOME").or(pw_home);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim();
        Self {
            server: text("OXEN_SERVER"),
            // What is no text is no token, and is told so when it is used.
            api_key: std::env::var_os("OXEN_API_KEY")
                .map(|token| token.to_string_lossy().trim().to_owned())
                .filter(|token| !token.is_empty())
                .map(Secret::new),
            api_key_file: std::env::var_os("OXEN_API_KEY_FILE").filter(|path| !path.is_empty()).map(PathBuf::from),
            log: text("OXENFS_LOG"),
            settings: KEYS.iter().filter_map(|key| Some((key.name, text(key.variable)?))).collect(),
            config_files: config_files(home.as_deref()),
            oxen_config_dir: std::env::var_os("OXEN_CONFIG_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
            state_home: path("XDG_STATE_HOME"),
            home,
            uid,
            gid: rustix::process::getegid().as_raw(),
            user: user.unwrap_or_else(|| format!("uid{uid}")),
            host: if host.is_empty() { "localhost" } else { host }.to_owned(),
        }
    }

    /// Where the Oxen CLI keeps its files.
    pub fn oxen_dir(&self) -> Option<PathBuf> {
        let own = self.oxen_config_dir.clone();
        own.or_else(|| Some(self.home.as_ref()?.join(".config/oxen")))
    }

    /// The directory with one state directory a mount, unless `--state-dir` names another.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`].
    pub fn state_root(&self) -> Result<PathBuf, ConfigError> {
        if let Some(dir) = &self.state_home {
            return Ok(dir.join("oxenfs"));
        }
        if self.uid == 0 {
            return Ok(PathBuf::from("/var/lib/oxenfs"));
        }
        let home = self.home.as_ref().ok_or(ConfigError::NoHome)?;
        Ok(home.join(".local/state/oxenfs"))
    }
}

/// The machine's configuration.
const MACHINE: &str = "/etc/oxenfs/config.toml";

/// `OXENFS_CONFIG` stands for both.
fn config_files(home: Option<&Path>) -> Vec<PathBuf> {
    if let Some(file) = std::env::var_os("OXENFS_CONFIG").filter(|path| !path.is_empty()) {
        return vec![file.into()];
    }
    let own = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own.or_else(|| Some(home?.join(".config")));
    let own = own.map(|dir| dir.join("oxenfs/config.toml"));
    own.into_iter().chain([MACHINE.into()]).collect()
}

/// The login name and home directory of `uid`. Not `$USER`: at boot there is none, and the name must be the same then.
fn passwd(uid: u32) -> Option<(String, PathBuf)> {
    use std::os::unix::ffi::OsStringExt;
    // 16 KiB is what glibc recommends on Linux (sysconf(_SC_GETPW_R_SIZE_MAX) is 1 KiB and known to be too small).
    let mut buffer = vec![0; 16 << 10];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live values of the right type, and the length is the buffer's.
    let code = unsafe { libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
    if code != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call succeeded, so `entry` is filled and its strings end in NUL inside `buffer`, which lives here.
    let (name, home) = unsafe {
        let entry = entry.assume_init_ref();
        (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir))
    };
    let home = PathBuf::from(OsString::from_vec(home.to_bytes().to_vec()));
    Some((name.to_str().ok()?.to_owned(), home))
}
