//! What goes where: as `cp -r` has it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::failure::{Failure, quoted};
use crate::path::Name;

/// What the destination is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A directory: the sources go into it.
    Directory,
    /// Anything else.
    Other,
    /// Nothing: the one source gets its name.
    Nothing,
}

/// One source.
#[derive(Debug, PartialEq, Eq)]
pub struct Root {
    /// Where it is.
    pub source: PathBuf,
    /// Its name in the directory that everything goes into; `None`: what it contains goes there.
    pub name: Option<Name>,
}

/// The directory, from the mount's root, that everything goes into, and what goes there.
pub type Plan = (Vec<Name>, Vec<Root>);

/// Decides what goes where. `below` is the destination from the mount's root; `is_dir` says whether a source is a
/// directory, links not followed.
///
/// # Errors
/// When it makes no sense, as `cp` says too.
pub fn plan(
    sources: &[PathBuf],
    destination: &Path,
    below: &Path,
    found: Found,
    is_dir: impl Fn(&Path) -> bool,
) -> Result<Plan, Failure> {
    let mut names = Vec::new();
    for component in below.components() {
        names.push(Name::from_os(component.as_os_str()).map_err(Failure::new)?);
    }
    if found == Found::Directory {
        let mut roots: Vec<Root> = Vec::new();
        for source in sources {
            let name = match last_name(source) {
                None => None,
                Some(name) => Some(Name::from_os(name).map_err(Failure::new)?),
            };
            if let Some(twin) = roots.iter().find(|root| name.is_some() && root.name == name) {
                let (one, other) = (quoted(&twin.source), quoted(source));
                return Err(Failure::usage(format_args!("{one} and {other} have the same name"))
                    .hint("import one of them into another directory"));
            }
            roots.push(Root { source: source.clone(), name });
        }
        return Ok((names, roots));
    }
    let [source] = sources else {
        return Err(Failure::new("it is not a directory, and there are several sources")
            .hint(format_args!("mkdir -p {}", quoted(destination))));
    };
    let name = names.pop().ok_or_else(|| Failure::new("it is not a directory"))?;
    let dir = is_dir(source);
    if found == Found::Other && dir {
        return Err(Failure::new("it is not a directory, and the source is one"));
    }
    if !dir && destination.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Failure::new("there is no such directory").hint(format_args!("mkdir -p {}", quoted(destination))));
    }
    Ok((names, vec![Root { source: source.clone(), name: Some(name) }]))
}

/// The name that a source has in the directory it is copied to; `None` for one that ends in `.` or `..`, or is the
/// root: its contents are meant.
fn last_name(source: &Path) -> Option<&OsStr> {
    let bytes = source.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    match &bytes[start..end] {
        b"." | b".." => None,
        name => Some(OsStr::from_bytes(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan as text: `into: source>name ...`.
    fn planned(sources: &[&str], destination: &str, found: Found) -> Result<String, String> {
        let sources: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
        let below = Path::new(destination).strip_prefix("/mnt").unwrap();
        let is_dir = |path: &Path| path.to_str().unwrap().trim_end_matches('/').ends_with("dir");
        let text = |name: &Name| String::from_utf8_lossy(name.as_bytes()).into_owned();
        let (into, roots) = plan(&sources, Path::new(destination), below, found, is_dir).map_err(|e| e.cause)?;
        let roots = roots
            .iter()
            .map(|root| format!("{}>{}", root.source.display(), root.name.as_ref().map_or("*".into(), text)));
        Ok(format!("{}: {}", into.iter().map(text).collect::<Vec<_>>().join("/"), roots.collect::<Vec<_>>().join(" ")))
    }

    #[test]
    fn sources_go_into_a_directory_that_is_there_under_their_names() {
        let found = Found::Directory;
        assert_eq!(planned(&["dir"], "/mnt", found).unwrap(), ": dir>dir");
        assert_eq!(planned(&["a/dir//", "/b"], "/mnt/x/y", found).unwrap(), "x/y: a/dir//>dir /b>b");
        assert_eq!(planned(&["dir/."], "/mnt/x/", found).unwrap(), "x: dir/.>*");
        assert_eq!(planned(&[".", ".."], "/mnt", found).unwrap(), ": .>* ..>*");
        assert!(planned(&["a/same", "b/same/"], "/mnt", found).unwrap_err().contains("the same name"));
    }

    #[test]
    fn one_source_takes_the_name_of_a_destination_that_is_not_there() {
        let found = Found::Nothing;
        assert_eq!(planned(&["dir"], "/mnt/x/new", found).unwrap(), "x: dir>new");
        assert_eq!(planned(&["dir/"], "/mnt/new/", found).unwrap(), ": dir/>new");
        assert_eq!(planned(&["file"], "/mnt/new", found).unwrap(), ": file>new");
        assert_eq!(planned(&["file"], "/mnt/new/", found).unwrap_err(), "there is no such directory");
        let several = planned(&["file", "dir"], "/mnt/new", found).unwrap_err();
        assert_eq!(several, "it is not a directory, and there are several sources");
    }

    #[test]
    fn a_file_is_replaced_by_a_file_alone() {
        assert_eq!(planned(&["file"], "/mnt/old", Found::Other).unwrap(), ": file>old");
        let dir = planned(&["dir"], "/mnt/old", Found::Other).unwrap_err();
        assert_eq!(dir, "it is not a directory, and the source is one");
    }
}
