use super::*;

#[test]
fn filters_for_all_caches_and_for_one_add_up() {
    let text = r#"
            [push]
            exclude = ["*-source"]
            exclude-larger = "2G"
            [push.caches.team]
            exclude = ["vm-*"]
            [push.caches."lab:team"]
            exclude-larger = 1000
            allow-incomplete = true
            [queue]
            caches = ["team", "lab:main"]
        "#;
    let settings = parse(Path::new("x"), text).unwrap();
    let filter = |server: &str, cache: &str| {
        let filter = settings.push.filter_for(&server.parse().unwrap(), &cache.parse().unwrap());
        let patterns: Vec<String> = filter.exclude.iter().map(ToString::to_string).collect();
        (patterns.join(" "), filter.exclude_larger, filter.allow_incomplete)
    };
    assert_eq!(filter("lab", "main"), ("*-source".to_owned(), Some(2 << 30), false));
    assert_eq!(filter("other", "team"), ("*-source vm-*".to_owned(), Some(2 << 30), false));
    assert_eq!(filter("lab", "team"), ("*-source vm-*".to_owned(), Some(1000), true));
    let written = toml::to_string(&toml::Table::try_from(&settings).unwrap()).unwrap();
    assert_eq!(parse(Path::new("x"), &written).unwrap(), settings);
    for wrong in
        ["[push]\nexclude = [\"[\"]", "[push]\nexclude-larger = \"big\"", "[queue]\ncaches = [\"a b\"]"]
    {
        assert!(matches!(parse(Path::new("x"), wrong), Err(Error::ParseSettings { .. })), "{wrong}");
    }
}

fn no_variables(_: &str) -> Option<String> {
    None
}

/// The files of a user, all of them in one folder.
struct Files {
    dormer: PathBuf,
    attic: PathBuf,
    paths: SettingsPaths,
}

impl std::ops::Deref for Files {
    type Target = SettingsPaths;

    fn deref(&self) -> &SettingsPaths {
        &self.paths
    }
}

fn folder() -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap().to_owned();
    let found = SettingsPaths::from_variables(&|name| (name == "XDG_CONFIG_HOME").then(|| root.clone()));
    let paths = SettingsPaths { machine: folder.path().join("etc/config.toml"), ..found };
    let (dormer, attic) = (paths.dormer.clone().unwrap(), paths.attic.clone().unwrap());
    (folder, Files { dormer, attic, paths })
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

const ATTIC: &str = concat!(
    "default-server = \"lab\"\n\n[servers.lab]\nendpoint = \"http://localhost:8080\"\ntoken = \"eyJ.a.b\"\n",
    "[servers.other]\nendpoint = \"https://example.org/sub/\"\ntoken-file = \"token\"\n"
);

#[test]
fn settings_live_below_xdg_config_home_or_home_or_in_etc() {
    let paths = |pairs: &'static [(&str, &str)]| {
        SettingsPaths::from_variables(&move |name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    };
    for (pairs, expected) in [
        (&[("XDG_CONFIG_HOME", "/x"), ("HOME", "/h")][..], Some("/x/dormer/config.toml")),
        (&[("HOME", "/h")], Some("/h/.config/dormer/config.toml")),
        (&[("XDG_CONFIG_HOME", "rel"), ("HOME", "/h")], Some("/h/.config/dormer/config.toml")),
        (&[("HOME", "rel")], None),
        (&[], None),
    ] {
        let paths = paths(pairs);
        assert_eq!(paths.dormer.as_deref(), expected.map(Path::new), "{pairs:?}");
        assert_eq!(paths.dormer.is_some(), paths.attic.is_some());
        assert_eq!(paths.machine, Path::new("/etc/dormer/config.toml"));
    }
}

/// Machines as services find them: which files exist, and the server that counts.
#[test]
fn the_nearest_settings_count_and_the_machines_are_the_last() {
    let server = |name: &str| format!("[servers.{name}]\nendpoint = \"http://{name}\"\n");
    for (own, attic, machine, expected) in [
        (true, true, true, Some("own")),
        (false, true, true, Some("attic")),
        (false, false, true, Some("machine")),
        (false, false, false, None),
    ] {
        let (_folder, paths) = folder();
        for (is_there, path, name) in [
            (own, &paths.dormer, "own"),
            (attic, &paths.attic, "attic"),
            (machine, &paths.machine, "machine"),
        ] {
            if is_there {
                write(path, &server(name));
            }
        }
        let mut loaded = LoadedSettings::load(&paths).unwrap();
        let found = loaded.resolve_server(None, &no_variables).ok().map(|server| server.name.to_string());
        assert_eq!(found.as_deref(), expected);
        // A save never touches the files of others.
        loaded.settings.default_server = Some("other".parse().unwrap());
        loaded.save().unwrap();
        for path in [&paths.attic, &paths.machine] {
            assert!(!std::fs::read_to_string(path).unwrap_or_default().contains("other"));
        }
    }
}

#[test]
fn without_a_home_the_machines_settings_are_read_and_nothing_can_be_saved() {
    let (_folder, files) = folder();
    write(&files.machine, "[servers.lab]\nendpoint = \"http://a\"\ntoken-file = \"token\"\n");
    write(&files.machine.with_file_name("token"), "of-the-machine\n");
    let homes = [
        (None, None),
        // The home of users that must not have one.
        (
            Some("/dev/null/.config/dormer/config.toml".into()),
            Some("/dev/null/.config/attic/config.toml".into()),
        ),
        (
            Some("/nowhere/.config/dormer/config.toml".into()),
            Some("/nowhere/.config/attic/config.toml".into()),
        ),
    ];
    for (dormer, attic) in homes {
        let paths = SettingsPaths { dormer: dormer.clone(), attic, machine: files.machine.clone() };
        let loaded = LoadedSettings::load(&paths).unwrap();
        let server = loaded.resolve_server(None, &no_variables).unwrap();
        assert_eq!(server.token.unwrap().expose(), "of-the-machine");
        if dormer.is_none() {
            assert!(matches!(loaded.save(), Err(Error::NoSettingsFolder)));
        }
    }
}

#[test]
fn an_address_needs_no_settings_and_takes_its_token_from_variables() {
    let at = |endpoint: &str, name: Option<&str>, variables: Variables<'_>| {
        let name: Option<ServerName> = name.map(|name| name.parse().unwrap());
        let server = ResolvedServer::at(endpoint.parse().unwrap(), name.as_ref(), variables);
        (server.name.to_string(), server.token.map(|token| token.expose().to_owned()))
    };
    let general = |name: &str| (name == "DORMER_TOKEN").then(|| "general\n".to_owned());
    let named = |name: &str| name.starts_with("DORMER_TOKEN").then(|| name.to_owned());
    assert_eq!(at("https://a.b", None, &no_variables), ("a-b".to_owned(), None));
    assert_eq!(at("https://a.b", None, &general).1.unwrap(), "general");
    // The variables of names are for servers of the settings, also if a host is called the same.
    for (name, shown) in [(None, "a-b"), (Some("lab"), "lab")] {
        assert_eq!(at("https://a.b", name, &named), (shown.to_owned(), Some("DORMER_TOKEN".to_owned())));
    }
    for (endpoint, name) in
        [("http://127.0.0.1:8080", "127-0-0-1"), ("http://[::1]:8080", "1"), ("http://[fe80::]/x", "fe80")]
    {
        assert_eq!(at(endpoint, None, &no_variables).0, name);
    }
    assert!(at(&format!("http://{}.org", "a".repeat(60)), None, &no_variables).0.len() <= 50);
}

#[test]
fn attics_settings_are_read_when_there_are_none_of_ours_and_never_written() {
    let (_folder, paths) = folder();
    write(&paths.attic, ATTIC);
    write(&paths.attic.with_file_name("token"), "from-file\n");
    let mut loaded = LoadedSettings::load(&paths).unwrap();
    assert_eq!(loaded.read_from.as_ref(), Some(&paths.attic));
    let server = loaded.resolve_server(None, &no_variables).unwrap();
    assert_eq!(
        (server.name.as_str(), server.endpoint.to_string().as_str()),
        ("lab", "http://localhost:8080/")
    );
    assert_eq!(server.token.unwrap().expose(), "eyJ.a.b");
    let other = loaded.resolve_server(Some(&"other".parse().unwrap()), &no_variables).unwrap();
    assert_eq!(other.token.unwrap().expose(), "from-file");

    let added = ServerSettings::new(&"https://new.example.org".parse().unwrap());
    loaded.settings.servers.insert("new".parse().unwrap(), added);
    loaded.save().unwrap();
    assert_eq!(std::fs::read_to_string(&paths.attic).unwrap(), ATTIC);
    let again = LoadedSettings::load(&paths).unwrap();
    assert_eq!(again.read_from.as_ref(), Some(&paths.dormer));
    assert_eq!(again.settings, loaded.settings);
    assert_eq!(again.settings.servers.len(), 3);
    let other = again.resolve_server(Some(&"other".parse().unwrap()), &no_variables).unwrap();
    assert_eq!(other.token.unwrap().expose(), "from-file", "the file is where Attic's settings said");
}

#[test]
fn ours_win_over_attics() {
    let (_folder, paths) = folder();
    write(&paths.attic, ATTIC);
    write(&paths.dormer, "[servers.mine]\nendpoint = \"http://a\"\n");
    let loaded = LoadedSettings::load(&paths).unwrap();
    // The only server is the default server.
    let server = loaded.resolve_server(None, &no_variables).unwrap();
    assert_eq!((server.name.as_str(), server.token), ("mine", None));
}

#[test]
fn variables_beat_the_file_and_the_servers_own_beats_the_general_one() {
    let (_folder, paths) = folder();
    write(&paths.dormer, &ATTIC.replace("lab", "my-lab"));
    let loaded = LoadedSettings::load(&paths).unwrap();
    let token = |variables: Variables<'_>| {
        loaded.resolve_server(None, variables).unwrap().token.unwrap().expose().to_owned()
    };
    assert_eq!(token(&no_variables), "eyJ.a.b");
    assert_eq!(token(&|name| (name == "DORMER_TOKEN").then(|| "general\n".to_owned())), "general");
    assert_eq!(
        token(&|name| name.starts_with("DORMER_TOKEN").then(|| name.to_owned())),
        "DORMER_TOKEN_MY_LAB"
    );
}

#[test]
fn a_server_is_found_by_its_address_with_its_own_token_only() {
    let (_folder, paths) = folder();
    let more = "[servers.bare]\nendpoint = \"http://a\"\n[servers.full]\nendpoint = \"http://a/\"\ntoken = \"own\"\n";
    write(&paths.dormer, &format!("{ATTIC}{more}"));
    let loaded = LoadedSettings::load(&paths).unwrap();
    let at = |endpoint: &str, variables: Variables<'_>| {
        let found = loaded.server_at(&endpoint.parse().unwrap(), variables).unwrap()?;
        Some((found.name.to_string(), found.token.map(|token| token.expose().to_owned())))
    };
    let found = |name: &str, token: &str| Some((name.to_owned(), Some(token.to_owned())));
    let all = |name: &str| name.starts_with("DORMER_TOKEN").then(|| name.to_owned());
    let general = |name: &str| (name == "DORMER_TOKEN").then(|| name.to_owned());
    assert_eq!(at("http://a", &general), found("full", "own"));
    assert_eq!(at("http://a/", &all), found("bare", "DORMER_TOKEN_BARE"));
    assert_eq!(at("http://localhost:8080", &general), found("lab", "eyJ.a.b"));
    assert_eq!(at("https://localhost:8080", &general), None);
    let lab: ServerName = "lab".parse().unwrap();
    for name in [None, Some(&lab)] {
        assert_eq!(loaded.endpoint_of(name).unwrap().to_string(), "http://localhost:8080/");
    }
}

#[test]
fn a_saved_file_is_private_whole_and_keeps_unknown_keys() {
    let (folder, paths) = folder();
    let text = "future = 7\n[servers.lab]\nendpoint = \"http://a\"\ncolour = \"red\"\n[watch]\npause = 3\n";
    write(&paths.dormer, text);
    let mut loaded = LoadedSettings::load(&paths).unwrap();
    loaded.settings.default_server = Some("lab".parse().unwrap());
    loaded.save().unwrap();
    let saved: toml::Table = std::fs::read_to_string(&paths.dormer).unwrap().parse().unwrap();
    let mut expected: toml::Table = text.parse().unwrap();
    expected.insert("default-server".to_owned(), "lab".into());
    assert_eq!(saved, expected);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&paths.dormer).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let names = std::fs::read_dir(folder.path().join("dormer")).unwrap();
    assert_eq!(names.count(), 1, "a temporary file was left behind");
}

#[cfg(unix)]
#[test]
fn a_settings_file_that_is_a_link_stays_one() {
    let (folder, paths) = folder();
    let target = folder.path().join("dotfiles.toml");
    std::fs::write(&target, "[servers.lab]\nendpoint = \"http://a\"\n").unwrap();
    std::fs::create_dir_all(paths.dormer.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&target, &paths.dormer).unwrap();
    let mut loaded = LoadedSettings::load(&paths).unwrap();
    loaded.settings.default_server = Some("lab".parse().unwrap());
    loaded.save().unwrap();
    assert!(paths.dormer.is_symlink());
    assert!(std::fs::read_to_string(&target).unwrap().contains("default-server"));
    // The target may be gone for a while.
    std::fs::remove_file(&target).unwrap();
    loaded.save().unwrap();
    assert!(paths.dormer.is_symlink());
    assert!(std::fs::read_to_string(&target).unwrap().contains("default-server"));
}

#[test]
fn tokens_do_not_show_in_debug_output_or_errors() {
    let (_folder, paths) = folder();
    write(&paths.dormer, ATTIC);
    let loaded = LoadedSettings::load(&paths).unwrap();
    assert!(!format!("{loaded:?}").contains("eyJ"));
    assert!(!format!("{:?}", loaded.resolve_server(None, &no_variables)).contains("eyJ"));
    write(&paths.dormer, "[servers.lab]\nendpoint = 5\ntoken = \"eyJ.a.b\"\n");
    let error = LoadedSettings::load(&paths).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    assert!(!format!("{error} {error:?}").contains("eyJ"));
}

#[test]
fn what_is_missing_is_named() {
    let (_folder, paths) = folder();
    let loaded = LoadedSettings::load(&paths).unwrap();
    assert!(matches!(loaded.resolve_server(None, &no_variables), Err(Error::NoDefaultServer)));
    let name: ServerName = "lab".parse().unwrap();
    assert!(matches!(loaded.resolve_server(Some(&name), &no_variables), Err(Error::UnknownServer { .. })));
    write(&paths.dormer, "[servers.lab]\nendpoint = \"http://a\"\ntoken-file = \"/nowhere/token\"\n");
    let loaded = LoadedSettings::load(&paths).unwrap();
    assert!(matches!(loaded.resolve_server(None, &no_variables), Err(Error::ReadTokenFile { .. })));
}

#[test]
fn cache_references_may_name_a_server() {
    let read = |text: &str| text.parse::<CacheRef>().map(|cache| (cache.to_string(), cache.server.is_some()));
    assert_eq!(read("main").unwrap(), ("main".to_owned(), false));
    assert_eq!(read("lab:main").unwrap(), ("lab:main".to_owned(), true));
    for text in ["", ":", "lab:", ":main", "a:b:c", "http://a", "lab: main", "-x"] {
        assert!(matches!(read(text), Err(Error::CacheRef { .. })), "{text:?}");
    }
}
