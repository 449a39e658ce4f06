//! The Oxen CLI's files: tokens, default host, who commits.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ConfigError, Environment, Files, RepoId, Secret, ServerUrl};

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

/// Where the token for one server comes from: `--token-file`, else `OXEN_API_KEY`, else `OXEN_API_KEY_FILE`, else the
/// configuration's `token-file`, else what the Oxen CLI stored.
#[derive(Debug, Clone)]
pub struct CredentialSource {
    origin: Origin,
    server: ServerUrl,
}

#[derive(Debug, Clone)]
enum Origin {
    Told(Secret),
    /// A file that holds nothing else, and who named it.
    File(PathBuf, &'static str),
    Oxen(OxenConfig),
}

/// A token is some hundred bytes; a file that is longer holds something else.
const LONGEST_TOKEN_BYTES: u64 = 64 << 10;

impl CredentialSource {
    /// For `server`. The files are the command's and the configuration's, if they name any.
    ///
    /// # Errors
    /// When a path cannot be made absolute: there is no working directory.
    pub fn new(
        environment: &Environment,
        server: &ServerUrl,
        told: Option<PathBuf>,
        configured: Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let file = |path, said_by| Ok::<_, ConfigError>(Origin::File(super::absolute(path)?, said_by));
        let origin = match (told, &environment.api_key, &environment.api_key_file, configured) {
            (Some(path), ..) => file(path, "--token-file")?,
            (None, Some(key), ..) => Origin::Told(key.clone()),
            (None, None, Some(path), _) => file(path.clone(), "OXEN_API_KEY_FILE")?,
            (None, None, None, Some(path)) => file(path, "token-file of the configuration")?,
            (None, None, None, None) => Origin::Oxen(OxenConfig::new(environment)),
        };
        Ok(Self { origin, server: server.clone() })
    }

    /// The same place as a mount of `repo` there would have.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn configured(
        environment: &Environment,
        files: &Files,
        server: &ServerUrl,
        repo: &RepoId,
    ) -> Result<Self, ConfigError> {
        Self::new(environment, server, None, files.text("token-file", Some(server), Some(repo)).map(PathBuf::from))
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
    /// When a file is there, or was named, and cannot be read, or what is there is no token.
    pub fn try_read(&self) -> Result<Option<Secret>, ConfigError> {
        let token = match &self.origin {
            Origin::Told(key) => Some(key.clone()),
            Origin::File(path, said_by) => Some(token_in(path, said_by)?),
            Origin::Oxen(oxen) => oxen.token(&self.server)?,
        };
        // A line of a header holds no other.
        match token {
            Some(token) if !token.expose().bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
                Err(ConfigError::BadToken { place: self.to_string() })
            }
            token => Ok(token),
        }
    }
}

/// Where it is from.
impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Told(_) => f.write_str("OXEN_API_KEY"),
            Origin::File(path, said_by) => write!(f, "{} ({said_by})", path.display()),
            Origin::Oxen(_) => f.write_str("the token of the Oxen configuration"),
        }
    }
}

/// The token that a file holds, and nothing else.
fn token_in(path: &Path, said_by: &str) -> Result<Secret, ConfigError> {
    let wrong =
        |problem: String| ConfigError::TokenFile { path: path.to_owned(), said_by: said_by.to_owned(), problem };
    let unreadable = |error: io::Error| wrong(format!("cannot be read: {error}"));
    // A pipe would wait for somebody who writes, and be empty the next time.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(wrong("is no regular file".into()));
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(LONGEST_TOKEN_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    match String::from_utf8_lossy(&text).trim() {
        "" => Err(wrong("is empty".into())),
        token => Ok(Secret::new(token)),
    }
}
