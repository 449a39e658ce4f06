//! `-o` lists, as `mount(8)` and `/etc/fstab` write them.

use super::{ConfigError, Key, MountInput, values};

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
        if key == "ignore" {
            // Each says one more.
            let pattern = required(&key, value)?;
            let before = self.ignore.take().map(|before| before + "\n").unwrap_or_default();
            self.ignore = Some(before + pattern);
            return Ok(true);
        }
        let act = match key.as_str() {
            // What mount(8) says where nobody said anything.
            "rw" => None,
            "create" => Some(&mut self.create),
            "public" => Some(&mut self.public),
            "foreground" => Some(&mut self.foreground),
            _ => match self.switch(if key == "ro" { "read-only" } else { &key }) {
                Some(switch) => {
                    let on = value.is_none_or(|value| value == "true");
                    if !on && value != Some("false") {
                        return Err(ConfigError::Conflict(format!("mount option {key:?} is true or false")));
                    }
                    switch.get_or_insert(on);
                    return Ok(true);
                }
                None => return self.apply_setting(&key, value),
            },
        };
        if value.is_some() {
            return Err(ConfigError::Conflict(format!("mount option {key:?} takes no value")));
        }
        if let Some(act) = act {
            *act = true;
        }
        Ok(true)
    }

    /// A setting that is true or false.
    fn switch(&mut self, key: &str) -> Option<&mut Option<bool>> {
        match key {
            "read-only" => Some(&mut self.read_only),
            "write-through" => Some(&mut self.write_through),
            "allow-other" => Some(&mut self.allow_other),
            "noexec" => Some(&mut self.noexec),
            _ => None,
        }
    }

    /// Whether a setting was said by now.
    pub(super) fn says(&mut self, key: &Key) -> bool {
        match (key.name, self.switch(key.name)) {
            (_, Some(switch)) => switch.is_some(),
            ("state-dir", None) => self.state_dir.is_some(),
            ("token-file", None) => self.token_file.is_some(),
            (name, None) => self.text(name).is_some_and(|text| text.is_some()),
        }
    }

    /// A setting from elsewhere than the command line, which was checked; what was said before stands.
    pub(super) fn set(&mut self, key: &Key, text: &str) -> Result<(), ConfigError> {
        match self.switch(key.name) {
            Some(switch) => {
                let on = values::switch(key.name, text)?;
                switch.get_or_insert(on);
            }
            None => drop(self.apply_setting(key.name, Some(text))?),
        }
        Ok(())
    }

    /// A setting that is a text.
    fn text(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "server" => &mut self.server,
            "branch" => &mut self.branch,
            "workspace" => &mut self.workspace,
            "revision" => &mut self.revision,
            "description" => &mut self.description,
            "storage" => &mut self.storage,
            "subdir" => &mut self.subdir,
            "spool-limit" => &mut self.spool_limit,
            "cache-limit" => &mut self.cache_limit,
            "fsync" => &mut self.fsync,
            "settle" => &mut self.settle,
            "drain-timeout" => &mut self.drain_timeout,
            "read-timeout" => &mut self.read_timeout,
            "refresh" => &mut self.refresh,
            "passthrough" => &mut self.passthrough,
            "keep-awake" => &mut self.keep_awake,
            "uid" => &mut self.uid,
            "gid" => &mut self.gid,
            "umask" => &mut self.umask,
            "log" => &mut self.log,
            "metrics" => &mut self.metrics,
            "ignore" => &mut self.ignore,
            _ => return None,
        })
    }

    /// One option with a value; `false` when it is unknown.
    fn apply_setting(&mut self, key: &str, value: Option<&str>) -> Result<bool, ConfigError> {
        let file = match key {
            "state-dir" => &mut self.state_dir,
            "token-file" => &mut self.token_file,
            _ => {
                let Some(field) = self.text(key) else { return Ok(false) };
                let value = required(key, value)?;
                field.get_or_insert_with(|| value.to_owned());
                return Ok(true);
            }
        };
        let path = required(key, value)?;
        file.get_or_insert_with(|| path.into());
        Ok(true)
    }
}

/// The value that `key` must have.
fn required<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, ConfigError> {
    value
        .filter(|value| !value.is_empty())
        .ok_or_else(|| ConfigError::Conflict(format!("mount option {key:?} needs a value: {key}=...")))
}
