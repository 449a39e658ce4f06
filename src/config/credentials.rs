//! The Oxen CLI's files: tokens, default host, who commits.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, Environment, Secret, ServerUrl};

/// The directory with the Oxen CLI's files. They are read when asked for, never kept.
#[derive(Debug, Clone)]
pub struct OxenConfig {
    dir: Option<PathBuf>,
}

/// `auth_config.toml`; fields that are not used here are ignored.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthFile {
    default_host: Option<String>,
    host_configs: Vec<HostEntry>,
}

#[derive(Deserialize)]
struct HostEntry {
    host: String,
    auth_token: Option<String>,
}

/// `user_config.toml`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct UserFile {
    name: Option<String>,
    email: Option<String>,
}

/// Who commits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// Name.
    pub name: Option<String>,
    /// Address.
    pub email: Option<String>,
}

impl OxenConfig {
    /// Where `environment` says it is.
    pub fn new(environment: &Environment) -> Self {
        Self { dir: environment.oxen_dir() }
    }

    /// The server that the Oxen CLI uses when none is named.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn default_host(&self) -> Result<Option<String>, ConfigError> {
        let file: AuthFile = self.read("auth_config.toml")?;
        Ok(file.default_host.filter(|host| !host.is_empty()))
    }

    /// Who commits, as far as the Oxen CLI was told.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn author(&self) -> Result<Author, ConfigError> {
        let file: UserFile = self.read("user_config.toml")?;
        let said = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        Ok(Author { name: said(file.name), email: said(file.email) })
    }

    /// The token that the Oxen CLI stored for `server`.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn token(&self, server: &ServerUrl) -> Result<Option<Secret>, ConfigError> {
        let file: AuthFile = self.read("auth_config.toml")?;
        let entry = file.host_configs.into_iter().find(|entry| {
            // An entry may or may not name the scheme and its default port.
            let with_scheme = match entry.host.contains("://") {
                true => entry.host.clone(),
                false => match server.scheme() {
                    super::Scheme::Http => format!("http://{}", entry.host),
                    super::Scheme::Https => format!("https://{}", entry.host),
                },
            };
            ServerUrl::parse("host", &with_scheme).is_ok_and(|stored| stored == *server)
        });
        let token = entry.and_then(|entry| entry.auth_token);
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()).map(Secret::new))
    }

    /// A file of the directory; the default value when it is not there.
    fn read<T: Default + serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, ConfigError> {
        let Some(dir) = &self.dir else {
            return Ok(T::default());
        };
        let path = dir.join(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(T::default()),
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path,
            line: error.span().and_then(|span| Some(text.get(..span.start)?.matches('\n').count() + 1)),
        })
    }
}

/// Where the token for one server comes from.
#[derive(Debug, Clone)]
pub struct CredentialSource {
    api_key: Option<Secret>,
    oxen: OxenConfig,
    server: ServerUrl,
}

impl CredentialSource {
    /// `OXEN_API_KEY`, else what the Oxen CLI stored for `server`.
    pub fn new(environment: &Environment, server: &ServerUrl) -> Self {
        Self { api_key: environment.api_key.clone(), oxen: OxenConfig::new(environment), server: server.clone() }
    }

    /// The token as it is now: a stored one is read again at every call, so that a renewed token is found without a
    /// remount. `None` when there is none, or when the file is being rewritten.
    pub fn read(&self) -> Option<Secret> {
        self.try_read().unwrap_or_else(|error| {
            tracing::warn!(%error, "no credentials");
            None
        })
    }

    /// The same, with the reason why a file cannot be used: for checks before a mount.
    ///
    /// # Errors
    /// When the Oxen configuration is there and cannot be read, or what is there is no token.
    pub fn try_read(&self) -> Result<Option<Secret>, ConfigError> {
        let (token, place) = match &self.api_key {
            Some(key) => (Some(key.clone()), "OXEN_API_KEY".to_owned()),
            None => (self.oxen.token(&self.server)?, "the token of the Oxen configuration".to_owned()),
        };
        // A line of a header holds no other.
        match token {
            Some(token) if !token.expose().bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                Err(ConfigError::BadToken { place })
            }
            token => Ok(token),
        }
    }
}
