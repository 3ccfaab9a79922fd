//! How the Kafka listeners of a node are written down, on the command line and in the configuration file.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use thiserror::Error;

use super::server::{advertised, socket_address, usage};
use crate::node::{KafkaListener, KafkaSecurity};
use crate::transport::ClientAuth;
use crate::types::{InvalidListenerName, ListenerName};

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KafkaClientAuth {
    Required,
    Requested,
    None,
}

impl From<KafkaClientAuth> for ClientAuth {
    fn from(asked: KafkaClientAuth) -> ClientAuth {
        match asked {
            KafkaClientAuth::Required => ClientAuth::Required,
            KafkaClientAuth::Requested => ClientAuth::Requested,
            KafkaClientAuth::None => ClientAuth::None,
        }
    }
}

/// The listener without a name, of which flags and keys of their own speak.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// `None`: there is no such listener, whatever else is said of it.
    pub(super) listen: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) plaintext: bool,
    pub(super) sasl: bool,
    pub(super) client_auth: Option<KafkaClientAuth>,
}

/// A table `[kafka.listeners.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    listen: String,
    #[serde(default)]
    security: Security,
    advertise: Option<String>,
    client_auth: Option<KafkaClientAuth>,
    #[serde(default)]
    plaintext_beyond_loopback: bool,
}

/// What clients must speak and show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Security {
    /// A client certificate, unless `client_auth` says otherwise.
    #[default]
    Tls,
    /// A client certificate, or a name and a password.
    SaslTls,
    Plaintext,
    SaslPlaintext,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no security: write tls, sasl_tls, plaintext or sasl_plaintext (Kafka's SSL, SASL_SSL, PLAINTEXT and SASL_PLAINTEXT)"
)]
pub struct UnknownSecurity {
    text: String,
}

impl FromStr for Security {
    type Err = UnknownSecurity;

    fn from_str(text: &str) -> Result<Security, UnknownSecurity> {
        match text {
            "tls" => Ok(Security::Tls),
            "sasl_tls" => Ok(Security::SaslTls),
            "plaintext" => Ok(Security::Plaintext),
            "sasl_plaintext" => Ok(Security::SaslPlaintext),
            _ => Err(UnknownSecurity { text: text.into() }),
        }
    }
}

impl TryFrom<String> for Security {
    type Error = UnknownSecurity;

    fn try_from(text: String) -> Result<Security, UnknownSecurity> {
        text.parse()
    }
}

/// The value of `--kafka-listener`: `NAME=SECURITY://HOST:PORT`, and after commas `advertise=HOST:PORT`, `client_auth=MODE` and
/// `plaintext_beyond_loopback`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedListener {
    name: ListenerName,
    written: Written,
}

/// Why a listener on the command line was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidListener {
    #[error(
        "{text:?} is no listener: write NAME=SECURITY://HOST:PORT[,advertise=HOST:PORT], such as internal=tls://10.0.0.1:9094"
    )]
    Form { text: String },
    #[error(transparent)]
    Name(#[from] InvalidListenerName),
    #[error(transparent)]
    Security(#[from] UnknownSecurity),
    #[error(
        "{word:?} says nothing of a listener: after its address may stand advertise=HOST:PORT, client_auth=required|requested|none \
         and plaintext_beyond_loopback, with commas between them"
    )]
    Word { word: String },
    #[error("{word} is said twice")]
    Twice { word: String },
}

impl FromStr for NamedListener {
    type Err = InvalidListener;

    fn from_str(text: &str) -> Result<NamedListener, InvalidListener> {
        let form = || InvalidListener::Form { text: text.into() };
        let (name, rest) = text.split_once('=').ok_or_else(form)?;
        let mut words = rest.split(',');
        let (security, listen) = words
            .next()
            .and_then(|address| address.split_once("://"))
            .ok_or_else(form)?;
        let mut written = Written {
            listen: listen.to_owned(),
            security: security.parse()?,
            advertise: None,
            client_auth: None,
            plaintext_beyond_loopback: false,
        };
        for word in words {
            let unknown = || InvalidListener::Word { word: word.into() };
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word, None),
            };
            let said_before = match (key, value) {
                ("advertise", Some(value)) => written.advertise.replace(value.to_owned()).is_some(),
                ("client_auth", Some(value)) => {
                    let mode = KafkaClientAuth::from_str(value, false).map_err(|_| unknown())?;
                    written.client_auth.replace(mode).is_some()
                }
                ("plaintext_beyond_loopback", None) => {
                    std::mem::replace(&mut written.plaintext_beyond_loopback, true)
                }
                _ => return Err(unknown()),
            };
            if said_before {
                return Err(InvalidListener::Twice { word: key.into() });
            }
        }
        Ok(NamedListener {
            name: name.parse()?,
            written,
        })
    }
}

/// Every listener by its name. One that a flag describes is as the flag says, whatever the file says of that name.
pub(super) fn resolve(
    unnamed: &Unnamed,
    file: BTreeMap<String, Written>,
    flags: Vec<NamedListener>,
) -> anyhow::Result<BTreeMap<ListenerName, KafkaListener>> {
    let mut written = BTreeMap::new();
    for (key, table) in file {
        let name = ListenerName::new(&key)
            .map_err(|error| usage(format!("[kafka.listeners.{key}]: {error}")))?;
        // Names that differ in case alone.
        if written.insert(name.clone(), table).is_some() {
            return Err(usage(format!(
                "[kafka.listeners.{key}]: there are two listeners named {name}: keep one of them"
            )));
        }
    }
    let mut flagged = BTreeMap::new();
    for NamedListener {
        name,
        written: words,
    } in flags
    {
        if flagged.insert(name.clone(), words).is_some() {
            return Err(usage(format!(
                "--kafka-listener: there are two listeners named {name}: keep one of them"
            )));
        }
    }
    written.extend(flagged);
    let mut listeners = BTreeMap::new();
    if let Some(listen) = &unnamed.listen {
        let name = ListenerName::unnamed();
        if written.contains_key(&name) {
            return Err(usage(format!(
                "the listener {name} is described twice, by --kafka-listen and by name: keep one of them, or give the other another name"
            )));
        }
        listeners.insert(name, unnamed.listener(listen)?);
    }
    for (name, words) in written {
        let listener = words.listener(&name)?;
        listeners.insert(name, listener);
    }
    Ok(listeners)
}

impl Unnamed {
    fn listener(&self, listen: &str) -> anyhow::Result<KafkaListener> {
        let client_auth = self.client_auth.unwrap_or(default_auth(self.sasl));
        Ok(KafkaListener {
            listen: socket_address("--kafka-listen", listen)?,
            advertise: advertised("--kafka-advertise", self.advertise.as_deref(), listen)?,
            sasl: self.sasl,
            security: match self.plaintext {
                true => KafkaSecurity::Plaintext,
                false => KafkaSecurity::Tls(client_auth.into()),
            },
            plaintext_beyond_loopback: false,
        })
    }
}

/// With passwords, a certificate is one way of two.
fn default_auth(sasl: bool) -> KafkaClientAuth {
    match sasl {
        true => KafkaClientAuth::Requested,
        false => KafkaClientAuth::Required,
    }
}

impl Written {
    fn listener(&self, name: &ListenerName) -> anyhow::Result<KafkaListener> {
        let of = |key: &str| format!("Kafka listener {name}, {key}");
        let sasl = matches!(self.security, Security::SaslTls | Security::SaslPlaintext);
        let security = match self.security {
            Security::Tls | Security::SaslTls => {
                if self.plaintext_beyond_loopback {
                    return Err(usage(format!(
                        "{}: it is under TLS, which needs no leave: take it away",
                        of("plaintext_beyond_loopback")
                    )));
                }
                KafkaSecurity::Tls(self.client_auth.unwrap_or(default_auth(sasl)).into())
            }
            Security::Plaintext | Security::SaslPlaintext => {
                if self.client_auth.is_some() {
                    return Err(usage(format!(
                        "{}: certificates are shown under TLS only: take it away, or make security tls or sasl_tls",
                        of("client_auth")
                    )));
                }
                KafkaSecurity::Plaintext
            }
        };
        Ok(KafkaListener {
            listen: socket_address(&of("listen"), &self.listen)?,
            advertise: advertised(&of("advertise"), self.advertise.as_deref(), &self.listen)?,
            security,
            sasl,
            plaintext_beyond_loopback: self.plaintext_beyond_loopback,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(text: &str) -> NamedListener {
        text.parse().unwrap()
    }

    fn file(text: &str) -> Result<BTreeMap<String, Written>, toml::de::Error> {
        toml::from_str(text)
    }

    fn name(text: &str) -> ListenerName {
        ListenerName::new(text).unwrap()
    }

    #[test]
    fn a_flag_says_all_that_a_table_does() {
        let table = file(
            "[internal]\nlisten = \"127.0.0.1:9094\"\nsecurity = \"sasl_tls\"\nadvertise = \"db1:19094\"\nclient_auth = \"none\"\n",
        )
        .unwrap();
        let words = "INTERNAL=sasl_tls://127.0.0.1:9094,advertise=db1:19094,client_auth=none";
        assert_eq!(flag(words).written, table["internal"]);
        let by_file = resolve(&Unnamed::default(), table, Vec::new()).unwrap();
        let by_flag = resolve(&Unnamed::default(), BTreeMap::new(), vec![flag(words)]).unwrap();
        assert_eq!(by_file, by_flag);
        let listener = &by_file[&name("internal")];
        assert_eq!(listener.security, KafkaSecurity::Tls(ClientAuth::None));
        assert!(listener.sasl);
        let advertised = listener.advertise.as_ref().unwrap();
        assert_eq!(advertised.to_string(), "db1:19094");
    }

    #[test]
    fn what_is_not_said_is_the_safe_choice() {
        let table = file(
            "[a]\nlisten = \"127.0.0.1:1\"\n[b]\nlisten = \"127.0.0.1:2\"\nsecurity = \"sasl_tls\"\n",
        );
        let listeners = resolve(&Unnamed::default(), table.unwrap(), Vec::new()).unwrap();
        let security = |of: &str| listeners[&name(of)].security;
        assert_eq!(security("a"), KafkaSecurity::Tls(ClientAuth::Required));
        assert_eq!(security("b"), KafkaSecurity::Tls(ClientAuth::Requested));
        assert!(!listeners[&name("a")].plaintext_beyond_loopback);
        // The very name that it listens on is what others dial.
        let advertised = listeners[&name("a")].advertise.as_ref().unwrap();
        assert_eq!(advertised.to_string(), "127.0.0.1:1");
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_said() {
        for (text, said) in [
            ("internal", "NAME=SECURITY://"),
            ("internal=127.0.0.1:1", "NAME=SECURITY://"),
            ("internal=ssl://127.0.0.1:1", "sasl_tls"),
            ("internal=TLS://127.0.0.1:1", "Kafka's SSL"),
            ("1=tls://127.0.0.1:1", "begins with a letter"),
            ("a b=tls://127.0.0.1:1", "made of letters"),
            ("=tls://127.0.0.1:1", "cannot be empty"),
            ("a=tls://127.0.0.1:1,advertize=b:1", "advertise=HOST:PORT"),
            (
                "a=tls://127.0.0.1:1,client_auth=some",
                "required|requested|none",
            ),
            ("a=tls://127.0.0.1:1,plaintext_beyond_loopback=no", "commas"),
            ("a=tls://127.0.0.1:1,advertise=b:1,advertise=c:1", "twice"),
            ("a=tls://127.0.0.1:1,", "says nothing"),
        ] {
            let error = text.parse::<NamedListener>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_table_is_said() {
        for (text, said) in [
            ("[a]\n", "listen"),
            (
                "[a]\nlisten = \"127.0.0.1:1\"\nsecurity = \"ssl\"\n",
                "sasl_tls",
            ),
            ("[a]\nlisten = \"127.0.0.1:1\"\nport = 1\n", "port"),
        ] {
            let error = file(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        for (text, said) in [
            (
                "[\"a.b\"]\nlisten = \"127.0.0.1:1\"\n",
                "[kafka.listeners.a.b]",
            ),
            (
                "[a]\nlisten = \"127.0.0.1:1\"\n[A]\nlisten = \"127.0.0.1:2\"\n",
                "two listeners named a",
            ),
            ("[a]\nlisten = \"127.0.0.1\"\n", "Kafka listener a, listen"),
            (
                "[a]\nlisten = \"127.0.0.1:1\"\nadvertise = \"x\"\n",
                "Kafka listener a, advertise",
            ),
            (
                "[a]\nlisten = \"127.0.0.1:1\"\nsecurity = \"plaintext\"\nclient_auth = \"required\"\n",
                "under TLS only",
            ),
            (
                "[a]\nlisten = \"127.0.0.1:1\"\nplaintext_beyond_loopback = true\n",
                "under TLS",
            ),
        ] {
            let error = resolve(&Unnamed::default(), file(text).unwrap(), Vec::new()).unwrap_err();
            assert!(error.to_string().contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_flag_takes_the_place_of_the_table_of_its_name_and_nothing_has_one_name_twice() {
        let tables =
            || file("[a]\nlisten = \"127.0.0.1:1\"\n[b]\nlisten = \"127.0.0.1:2\"\n").unwrap();
        let flags = vec![flag("a=plaintext://127.0.0.1:3")];
        let listeners = resolve(&Unnamed::default(), tables(), flags.clone()).unwrap();
        assert_eq!(listeners.len(), 2);
        assert_eq!(listeners[&name("a")].security, KafkaSecurity::Plaintext);
        let twice = vec![flags[0].clone(), flag("A=tls://127.0.0.1:4")];
        let error = resolve(&Unnamed::default(), tables(), twice).unwrap_err();
        assert!(
            error.to_string().contains("two listeners named a"),
            "{error}"
        );

        let unnamed = Unnamed {
            listen: Some("127.0.0.1:5".to_owned()),
            sasl: true,
            ..Unnamed::default()
        };
        let listeners = resolve(&unnamed, tables(), flags).unwrap();
        assert_eq!(listeners.len(), 3);
        let own = &listeners[&ListenerName::unnamed()];
        assert_eq!(own.security, KafkaSecurity::Tls(ClientAuth::Requested));
        let clash = vec![flag("default=tls://127.0.0.1:6")];
        let error = resolve(&unnamed, tables(), clash).unwrap_err();
        assert!(error.to_string().contains("described twice"), "{error}");
    }
}
