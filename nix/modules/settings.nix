# The settings that the server and the publisher of a machine share: they use the same database and
# the same store, so they read the same file.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.dormer;
  format = pkgs.formats.toml { };
  inherit (lib) mkOption types;

  written = format.generate "dormer.toml" cfg.settings;
  # Unknown keys and values out of range stop the build of the system, not the start of the server.
  checked = pkgs.runCommand "dormer.toml" { } ''
    ${lib.getExe cfg.package} config show --config ${written} >/dev/null
    cp ${written} $out
  '';

  # Files in the Nix store can be read by every user of the machine.
  secretKeys = [
    [ "master-key" ]
    [ "previous-master-key" ]
    [
      "jwt"
      "signing"
      "token-hs256-secret-base64"
    ]
    [
      "jwt"
      "signing"
      "token-rs256-secret-base64"
    ]
    [
      "storage"
      "credentials"
      "secret_access_key"
    ]
  ];
  secretsOf = settings: lib.filter (path: lib.hasAttrByPath path settings) secretKeys;
  edges = cfg.settings.edge or [ ];
  edgesWithSecret = lib.filter (edge: edge ? credentials.secret_access_key) edges;
  hasPassword = url: builtins.match "[a-z]+://[^/@:]*:[^@]+@.*" url != null;

  isUsed = cfg.enable || cfg.publisher.enable;
in
{
  options.services.dormer = {
    enable = lib.mkEnableOption "the Dormer binary cache server";

    publisher.enable = lib.mkEnableOption "the publisher, which brings caches to edge targets";

    package = lib.mkPackageOption pkgs "dormer" { };

    settings = mkOption {
      default = { };
      description = ''
        The settings file, as in docs/SETTINGS.md. It lies in the Nix store, which every user can
        read: secrets go into {option}`services.dormer.environmentFile` or
        {option}`services.dormer.credentials`.
      '';
      example = lib.literalExpression ''
        {
          api-endpoint = "https://cache.example.org/";
          garbage-collection.default-retention-period = "3 months";
        }
      '';
      type = types.submodule {
        freeformType = format.type;
        options = {
          listen = mkOption {
            type = types.strMatching "(unix:/.+|.+:[0-9]+)";
            default = "127.0.0.1:8080";
            example = "unix:/run/dormer/socket";
            description = "The address or socket to listen on.";
          };
          data-dir = mkOption {
            type = types.path;
            default = "/var/lib/dormer";
            description = ''
              The folder of the embedded database, the packs and the secrets that the first start
              makes. With another folder, allow the units to write there
              (`systemd.services.dormer.serviceConfig.ReadWritePaths`).
            '';
          };
        };
      };
    };

    settingsFile = mkOption {
      type = types.path;
      default = if cfg.checkSettings then checked else written;
      defaultText = lib.literalMD "made from {option}`services.dormer.settings`";
      description = "The settings file, in place of {option}`services.dormer.settings`.";
    };

    checkSettings = mkOption {
      type = types.bool;
      default = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
      defaultText = lib.literalMD "`true`, unless the system is cross-compiled";
      description = "Whether the build of the system runs `dormer config show` on the settings.";
    };

    environmentFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/dormer.env";
      description = ''
        A file with secrets as variables, one `NAME=value` a line: for example
        `DORMER_MASTER_KEY`, `DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64`,
        `DORMER_DATABASE_URL`, `AWS_SECRET_ACCESS_KEY`.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = {
        master-key = "/run/secrets/dormer-master-key";
      };
      description = ''
        Files with secrets, each by its name in `$CREDENTIALS_DIRECTORY`. The name `master-key` also
        sets `DORMER_MASTER_KEY_FILE`.
      '';
    };

    user = mkOption {
      type = types.str;
      default = "dormer";
      description = "The user of the server and the publisher.";
    };

    group = mkOption {
      type = types.str;
      default = "dormer";
      description = "The group of the server and the publisher.";
    };
  };

  config = lib.mkIf isUsed {
    assertions = [
      {
        assertion = secretsOf cfg.settings == [ ];
        message =
          "services.dormer.settings holds secrets, which every user could read in the Nix store: "
          + lib.concatMapStringsSep ", " (lib.concatStringsSep ".") (secretsOf cfg.settings)
          + ". Put them into services.dormer.environmentFile.";
      }
      {
        assertion = edgesWithSecret == [ ];
        message =
          "services.dormer.settings.edge holds secret keys. Set "
          + "DORMER_EDGE_<NAME>_CREDENTIALS_SECRET_ACCESS_KEY in services.dormer.environmentFile.";
      }
      {
        assertion = !hasPassword (cfg.settings.database.url or "");
        message =
          "services.dormer.settings.database.url holds a password. Set DORMER_DATABASE_URL in "
          + "services.dormer.environmentFile.";
      }
    ]
    ++ map (file: {
      assertion = !lib.hasPrefix builtins.storeDir (toString file);
      message = "services.dormer: the secret ${toString file} is in the Nix store, which every user can read.";
    }) (lib.optional (cfg.environmentFile != null) cfg.environmentFile ++ lib.attrValues cfg.credentials);

    users.users = lib.mkIf (cfg.user == "dormer") {
      dormer = {
        isSystemUser = true;
        inherit (cfg) group;
        home = "/var/lib/dormer";
      };
    };
    users.groups = lib.mkIf (cfg.group == "dormer") { dormer = { }; };

    # `dormer-admin token create` and the other commands of the administrator.
    environment.systemPackages = [
      cfg.package
      (import ./admin.nix { inherit lib pkgs cfg; })
    ];
  };
}
