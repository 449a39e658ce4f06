//! `-o` lists, as `mount(8)` and `/etc/fstab` write them.

use super::{ConfigError, MountInput};

/// Options for whoever reads `/etc/fstab` before us, and those that describe what every FUSE mount is anyway.
const IGNORED: [&str; 24] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "diratime",
    "exec",
    "group",
    "lazytime",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "user",
    "users",
    "nogroup",
];

impl MountInput {
    /// Takes in a list such as `ro,branch=dev,spool-limit=10G`. What was said before stands: the command line is
    /// applied first and wins. `lenient` (as `mount -s` asks) passes over unknown keys.
    ///
    /// # Errors
    /// [`ConfigError::UnknownOption`], or [`ConfigError::Invalid`] for a key with a value too many or too few.
    pub fn apply_options(&mut self, list: &str, lenient: bool) -> Result<(), ConfigError> {
        for option in list.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (option, None),
            };
            if IGNORED.contains(&key) || key.starts_with("x-") || matches!(key, "comment" | "user") {
                continue;
            }
            if !self.apply_option(key, value)? && !lenient {
                return Err(ConfigError::UnknownOption(option.to_owned()));
            }
        }
        Ok(())
    }

    /// One option; `false` when it is unknown.
    fn apply_option(&mut self, key: &str, value: Option<&str>) -> Result<bool, ConfigError> {
        let key = key.replace('_', "-");
        let switch = match key.as_str() {
            "ro" | "read-only" => Some((&mut self.read_only, true)),
            "rw" => None,
            "create" => Some((&mut self.create, true)),
            "public" => Some((&mut self.public, true)),
            "foreground" => Some((&mut self.foreground, true)),
            "write-through" => Some((&mut self.write_through, true)),
            "allow-other" => Some((&mut self.allow_other, true)),
            "noexec" => Some((&mut self.noexec, true)),
            _ => return self.apply_setting(&key, value),
        };
        if value.is_some() {
            return Err(ConfigError::Conflict(format!("mount option {key:?} takes no value")));
        }
        if let Some((field, on)) = switch {
            *field = on;
        }
        Ok(true)
    }

    /// One option with a value; `false` when it is unknown.
    fn apply_setting(&mut self, key: &str, value: Option<&str>) -> Result<bool, ConfigError> {
        let field = match key {
            "server" => &mut self.server,
            "branch" => &mut self.branch,
            "workspace" => &mut self.workspace,
            "description" => &mut self.description,
            "storage" => &mut self.storage,
            "subdir" => &mut self.subdir,
            "spool-limit" => &mut self.spool_limit,
            "cache-limit" => &mut self.cache_limit,
            "fsync" => &mut self.fsync,
            "settle" => &mut self.settle,
            "drain-timeout" => &mut self.drain_timeout,
            "read-timeout" => &mut self.read_timeout,
            "passthrough" => &mut self.passthrough,
            "keep-awake" => &mut self.keep_awake,
            "uid" => &mut self.uid,
            "gid" => &mut self.gid,
            "umask" => &mut self.umask,
            "log" => &mut self.log,
            "state-dir" => {
                let dir = required(key, value)?;
                self.state_dir.get_or_insert_with(|| dir.into());
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let value = required(key, value)?;
        field.get_or_insert_with(|| value.to_owned());
        Ok(true)
    }
}

/// The value that `key` must have.
fn required<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, ConfigError> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ConfigError::Conflict(format!("mount option {key:?} needs a value: {key}=...")))
}
