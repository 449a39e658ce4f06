//! Servers and repositories as people name them.

use std::fmt;
use std::str::FromStr;

use super::{ConfigError, Environment, Files, OxenConfig, is_segment};

/// How to speak to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Unencrypted.
    Http,
    /// Through TLS.
    Https,
}

/// Scheme, host and port, and nothing else: no path, no credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    scheme: Scheme,
    /// Lower case; an IPv6 address with its brackets.
    host: String,
    /// `None` is the scheme's own.
    port: Option<u16>,
}

impl ServerUrl {
    /// `host`, `host:port` or a URL; `what` names the setting in errors.
    ///
    /// # Errors
    /// When `text` is something else.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::Invalid {
            what,
            value: text.to_owned(),
            expected: "a server such as https://hub.oxen.ai or http://127.0.0.1:3000",
        };
        if text.contains('@') {
            return Err(ConfigError::CredentialsInUrl(what));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(_) => return Err(invalid()),
            None => (None, text),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rfind(']') {
            Some(end) => (&authority[..=end], &authority[end + 1..]),
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(invalid)?),
            None if port.is_empty() => None,
            None => return Err(invalid()),
        };
        let host = host.to_ascii_lowercase();
        let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_segment(&host),
        };
        if !valid {
            return Err(invalid());
        }
        let scheme = scheme.unwrap_or(if is_local(&host) { Scheme::Http } else { Scheme::Https });
        let port = port.filter(|port| *port != scheme.default_port());
        Ok(Self { scheme, host, port })
    }

    /// `host` or `host:port`, as the Oxen configuration names servers.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// Whether what is sent there can be read on the way.
    pub fn is_exposed(&self) -> bool {
        self.scheme == Scheme::Http && !is_local(&self.host)
    }

    /// How to speak to it.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
}

impl Scheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Whether `host` is this machine.
fn is_local(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.starts_with("127.")
        || host == "0.0.0.0"
        || host == "[::1]"
}

/// As a URL, without a final slash.
impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// A repository's name on its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    /// User or organization.
    pub namespace: String,
    /// Its own name.
    pub name: String,
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a REPO argument that is none should have been.
const REPO_FORM: &str = "NAMESPACE/NAME or a URL such as http://127.0.0.1:3000/ox/cats";
const OXEN_FORM: &str = "a URL such as oxen://ox:cats or oxen://ox:cats@main/images";

/// `oxen://NAMESPACE:NAME[@REVISION][/PATH]`: what is meant, and not where: the server is named elsewhere. A revision
/// with a slash in it cannot be told from a path; `--revision` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OxenUrl {
    /// The repository.
    pub repo: RepoId,
    /// A branch or a commit, where one is named.
    pub revision: Option<String>,
    /// A directory of the repository; empty is all of it.
    pub path: String,
}

impl OxenUrl {
    /// Reads `text`; `None` when it has another scheme, or none.
    ///
    /// # Errors
    /// When it begins as one and is none.
    pub fn parse(text: &str) -> Option<Result<Self, ConfigError>> {
        let rest = text.strip_prefix("oxen://")?;
        let (named, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (named, revision) = match named.split_once('@') {
            Some((named, revision)) => (named, Some(revision)),
            None => (named, None),
        };
        let path = path.strip_suffix('/').unwrap_or(path).to_owned();
        Some(match named.split_once(':') {
            Some((namespace, name))
                if is_segment(namespace) && is_segment(name) && revision.is_none_or(|text| !text.is_empty()) =>
            {
                let repo = RepoId { namespace: namespace.to_owned(), name: name.to_owned() };
                Ok(Self { repo, revision: revision.map(str::to_owned), path })
            }
            // Not repeated: what stands before the sign may be a password.
            _ if text.contains('@') => Err(ConfigError::CredentialsInUrl("REPO")),
            _ => Err(ConfigError::Invalid { what: "REPO", value: text.to_owned(), expected: OXEN_FORM }),
        })
    }
}

impl FromStr for RepoId {
    type Err = ConfigError;

    /// `NAMESPACE/NAME`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once('/') {
            Some((namespace, name)) if is_segment(namespace) && is_segment(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(ConfigError::Invalid { what: "REPO", value: text.to_owned(), expected: REPO_FORM }),
        }
    }
}

/// The server and the repository that a REPO argument means: a whole URL names both; for `NAMESPACE/NAME` and
/// `oxen://NAMESPACE:NAME` the server is `--server`, else `OXEN_SERVER`, else what the configuration files say, else the
/// default host of the Oxen configuration.
///
/// # Errors
/// When either is missing or malformed, or the URL and `--server` disagree.
pub fn resolve(
    repo: &str,
    server: Option<&str>,
    environment: &Environment,
    oxen: &OxenConfig,
    files: &Files,
) -> Result<(ServerUrl, RepoId), ConfigError> {
    let oxen_url = OxenUrl::parse(repo).transpose()?;
    if oxen_url.is_none() && repo.contains('@') {
        return Err(ConfigError::CredentialsInUrl("REPO"));
    }
    let named = server.map(|text| ServerUrl::parse("--server", text)).transpose()?;
    if oxen_url.is_none()
        && let Some((scheme, rest)) = repo.split_once("://")
    {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (authority, id) = rest.split_once('/').unwrap_or((rest, ""));
        let in_url = ServerUrl::parse("REPO", &format!("{scheme}://{authority}"))?;
        let id = id.parse::<RepoId>().map_err(|_| ConfigError::Invalid {
            what: "REPO",
            value: repo.to_owned(),
            expected: REPO_FORM,
        })?;
        if let Some(named) = named.filter(|named| *named != in_url) {
            return Err(ConfigError::Conflict(format!("REPO is on {in_url}, but --server says {named}")));
        }
        return Ok((in_url, id));
    }
    let id = match oxen_url {
        Some(url) => url.repo,
        None => repo.parse()?,
    };
    if let Some(named) = named {
        return Ok((named, id));
    }
    if let Some(text) = &environment.server {
        return Ok((ServerUrl::parse("OXEN_SERVER", text)?, id));
    }
    if let Some(text) = files.text("server", None, Some(&id)) {
        return Ok((ServerUrl::parse("server", text)?, id));
    }
    match oxen.default_host()? {
        Some(host) => Ok((ServerUrl::parse("default_host of the Oxen configuration", &host)?, id)),
        None => Err(ConfigError::NoServer),
    }
}
