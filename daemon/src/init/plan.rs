//! The files of a new token. Pure functions.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use tokend_protocol::{Secret, TokenName};

use crate::secret_source::SecretSource;

/// Everything about the new token, as asked or from the command line.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) name: TokenName,
    /// The keys that say what the provider is: `preset`, `token_endpoint`, `issuer` and so on.
    pub(super) provider: Vec<(&'static str, String)>,
    pub(super) client_id: String,
    pub(super) secret: SecretFrom,
    pub(super) scope: Option<String>,
    pub(super) params: Vec<(String, String)>,
    pub(super) allow: Vec<String>,
}

/// Where the client secret comes from.
#[derive(Debug)]
pub(super) enum SecretFrom {
    /// The secret itself. It goes into a file of root.
    Typed(Secret),
    /// A file of root, which systemd gives to the daemon.
    File(PathBuf),
    /// The same, encrypted by `systemd-creds`.
    Encrypted(PathBuf),
    /// A credential that the unit has already.
    Credential(String),
    /// A file of the daemon's user.
    DaemonsFile(PathBuf),
}

/// Where files go.
#[derive(Debug)]
pub(super) struct Places {
    /// The configuration. The drop-in goes into `CONFIG.d`.
    pub(super) config: PathBuf,
    pub(super) has_config: bool,
    /// The drop-ins of the unit.
    pub(super) unit_dir: PathBuf,
    /// The secrets of root.
    pub(super) secret_dir: PathBuf,
}

/// A file to write.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) path: PathBuf,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// Part of the configuration.
    Config(String),
    /// A drop-in of the unit.
    Unit(String),
    Secret(Secret),
}

/// All files, in an order in which the first ones have no effect without the last one.
pub(super) fn files(answers: &Answers, places: &Places) -> Vec<Planned> {
    let name = &answers.name;
    let mut files = Vec::new();
    let mut plan = |path, content| files.push(Planned { path, content });
    if let SecretFrom::Typed(secret) = &answers.secret {
        plan(secret_path(name, places), Content::Secret(secret.clone()));
    }
    if let Some(text) = unit(answers, places) {
        plan(unit_drop_in(name, places), Content::Unit(text));
    }
    if !places.has_config {
        let text = "# Each token has a file in the directory tokend.toml.d beside this one.\n";
        plan(places.config.clone(), Content::Config(text.to_owned()));
    }
    plan(drop_in(name, places), Content::Config(config(answers)));
    files
}

/// The drop-in of the configuration.
pub(super) fn drop_in(name: &TokenName, places: &Places) -> PathBuf {
    let mut path = places.config.as_os_str().to_owned();
    path.push(format!(".d/{name}.toml"));
    path.into()
}

/// The drop-in of the unit.
pub(super) fn unit_drop_in(name: &TokenName, places: &Places) -> PathBuf {
    places.unit_dir.join(format!("{name}.conf"))
}

/// The credential that the unit gets, if it needs a new one.
pub(super) fn new_credential(answers: &Answers) -> Option<String> {
    let is_new = !matches!(answers.secret, SecretFrom::Credential(_) | SecretFrom::DaemonsFile(_));
    is_new.then(|| credential(&answers.name))
}

/// The name of the credential. systemd ends it at a colon, which the name of a token may have.
pub(super) fn credential(name: &TokenName) -> String {
    format!("{}.secret", name.as_str().replace(':', "_"))
}

fn secret_path(name: &TokenName, places: &Places) -> PathBuf {
    places.secret_dir.join(credential(name))
}

/// The drop-in of the unit. `None` if the daemon needs no new credential.
fn unit(answers: &Answers, places: &Places) -> Option<String> {
    let (key, path) = match &answers.secret {
        SecretFrom::Typed(_) => ("LoadCredential", secret_path(&answers.name, places)),
        SecretFrom::File(path) => ("LoadCredential", path.clone()),
        SecretFrom::Encrypted(path) => ("LoadCredentialEncrypted", path.clone()),
        SecretFrom::Credential(_) | SecretFrom::DaemonsFile(_) => return None,
    };
    // systemd would replace `%` and the letter after it.
    let path = path.display().to_string().replace('%', "%%");
    Some(format!("[Service]\n{key}={}:{path}\n", credential(&answers.name)))
}

/// The drop-in of the configuration.
fn config(answers: &Answers) -> String {
    let name = key(answers.name.as_str());
    let mut text = format!("[provider.{name}]\n");
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key} = {value}");
    };
    for (key, value) in &answers.provider {
        line(key, &string(value));
    }
    line("client_id", &string(&answers.client_id));
    let source = match &answers.secret {
        SecretFrom::Credential(name) => format!("credential = {}", string(name)),
        SecretFrom::DaemonsFile(path) => format!("file = {}", string(&path.to_string_lossy())),
        _ => format!("credential = {}", string(&credential(&answers.name))),
    };
    line("client_secret", &format!("{{ {source} }}"));
    let _ = write!(text, "\n[token.{name}]\nprovider = {}\n", string(answers.name.as_str()));
    if let Some(scope) = &answers.scope {
        let _ = writeln!(text, "scope = {}", string(scope));
    }
    let params = answers.params.iter().map(|(name, value)| format!("{} = {}", key(name), string(value)));
    let params = params.collect::<Vec<_>>().join(", ");
    if !params.is_empty() {
        let _ = writeln!(text, "params = {{ {params} }}");
    }
    let rules: Vec<_> = answers.allow.iter().map(|rule| string(rule)).collect();
    let _ = writeln!(text, "allow = [{}]", rules.join(", "));
    text
}

/// The source from which this process can read the secret, which is not the one of the daemon. `typed` is the file of a
/// typed secret.
pub(super) fn readable_source(answers: &Answers, typed: Option<&Path>) -> Option<SecretSource> {
    match &answers.secret {
        SecretFrom::Typed(_) => Some(SecretSource::File(typed?.to_owned())),
        SecretFrom::File(path) | SecretFrom::DaemonsFile(path) => Some(SecretSource::File(path.clone())),
        SecretFrom::Encrypted(path) => {
            let name = format!("--name={}", credential(&answers.name));
            let words = ["systemd-creds", "decrypt", &name, path.to_str()?, "-"];
            Some(SecretSource::Command(words.map(str::to_owned).into()))
        }
        SecretFrom::Credential(_) => None,
    }
}

/// A bare key if TOML allows that, otherwise a quoted one.
fn key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if is_bare { name.to_owned() } else { string(name) }
}

/// A basic string of TOML.
fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;

    fn answers(name: &str, secret: SecretFrom) -> Answers {
        Answers {
            name: name.parse().unwrap(),
            provider: vec![("token_endpoint", "https://id.example/token".to_owned())],
            client_id: "c".to_owned(),
            secret,
            scope: None,
            params: Vec::new(),
            allow: vec!["user:ann".to_owned()],
        }
    }

    fn places(config: &Path) -> Places {
        Places {
            config: config.to_owned(),
            has_config: true,
            unit_dir: "/unit.d".into(),
            secret_dir: "/store".into(),
        }
    }

    fn texts(answers: &Answers) -> Vec<(String, String)> {
        let text = |content: Content| match content {
            Content::Config(text) | Content::Unit(text) => text,
            Content::Secret(secret) => secret.expose().to_owned(),
        };
        let files = files(answers, &places(Path::new("/c")));
        files.into_iter().map(|file| (file.path.display().to_string(), text(file.content))).collect()
    }

    #[test]
    fn a_typed_secret_goes_into_a_file_of_root_and_from_there_to_the_daemon() {
        let answers = Answers {
            scope: Some("a b".to_owned()),
            params: vec![("acr_values".to_owned(), "tenant:acme".to_owned())],
            ..answers("bank:a.b", SecretFrom::Typed(Secret::from("s3cret".to_owned())))
        };
        let expected = [
            ("/store/bank_a.b.secret", "s3cret"),
            ("/unit.d/bank:a.b.conf", "[Service]\nLoadCredential=bank_a.b.secret:/store/bank_a.b.secret\n"),
            (
                "/c.d/bank:a.b.toml",
                "[provider.\"bank:a.b\"]\ntoken_endpoint = \"https://id.example/token\"\nclient_id = \"c\"\n\
                 client_secret = { credential = \"bank_a.b.secret\" }\n\n[token.\"bank:a.b\"]\nprovider = \
                 \"bank:a.b\"\nscope = \"a b\"\nparams = { acr_values = \"tenant:acme\" }\nallow = [\"user:ann\"]\n",
            ),
        ];
        assert_eq!(texts(&answers), expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
    }

    #[test]
    fn each_source_of_the_secret_has_its_own_lines() {
        let unit = |secret| unit(&answers("t", secret), &places(Path::new("/c"))).unwrap_or_default();
        assert_eq!(unit(SecretFrom::File("/a%b".into())), "[Service]\nLoadCredential=t.secret:/a%%b\n");
        let encrypted = unit(SecretFrom::Encrypted("/e".into()));
        assert_eq!(encrypted, "[Service]\nLoadCredentialEncrypted=t.secret:/e\n");
        for (secret, line) in [
            (SecretFrom::Credential("x".to_owned()), "client_secret = { credential = \"x\" }"),
            (SecretFrom::DaemonsFile("/f".into()), "client_secret = { file = \"/f\" }"),
        ] {
            let answers = answers("t", secret);
            assert!(config(&answers).contains(line), "{line}");
            assert_eq!(super::unit(&answers, &places(Path::new("/c"))), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_a_value_and_nothing_else(id in "[^\\p{Cc}]{1,20}", scope in "[a-z]{1,9}") {
            let answers = Answers {
                client_id: id.clone(),
                scope: Some(scope),
                ..answers("t", SecretFrom::Credential("c".to_owned()))
            };
            let loaded = config::parse(Path::new("t.toml"), &config(&answers));
            if let Ok(loaded) = loaded {
                prop_assert_eq!(&loaded.config.tokens.values().next().unwrap().credential.client.client_id, &id);
            } else {
                prop_assert!(id.trim() != id, "{:?}", loaded);
            }
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(string("a\"b\\c\n\u{7f}"), r#""a\"b\\c\u000A\u007F""#);
    }
}
