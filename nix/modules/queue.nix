# `programs.dormer.queue`: what this machine builds reaches caches by itself. Nix's post-build hook
# queues each build, or a watcher each new path of the store, and a service pushes what is queued.
#
# The hook runs as root, in the daemon of Nix. It writes into a folder of the service's user, which
# holds the token and can do nothing else.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.programs.dormer.queue;
  inherit (config.programs.dormer) package;
  inherit (lib) mkOption types;

  folder = "/var/lib/dormer-queue";
  caches = map (cache: "lab:${cache}") cfg.caches;

  settings = (pkgs.formats.toml { }).generate "config.toml" {
    default-server = "lab";
    servers.lab = {
      inherit (cfg) endpoint;
      token-file = "/run/credentials/dormer-queue.service/token";
    };
    push = {
      inherit (cfg) exclude;
    }
    // lib.optionalAttrs (cfg.excludeLarger != null) { exclude-larger = cfg.excludeLarger; };
  };
  settingsFolder = pkgs.runCommand "dormer-queue-settings" { } ''
    mkdir -p $out/dormer
    cp ${settings} $out/dormer/config.toml
  '';

  # Ends with 0 whatever happens: a build matters more than its copy in the cache.
  hook = pkgs.writeShellScript "dormer-post-build-hook" ''
    ${lib.getExe package} hook ${lib.escapeShellArgs caches} --queue-dir ${folder} ||
      echo 'dormer: the build is not queued for the cache' >&2
    exit 0
  '';
in
{
  imports = [ ./client.nix ];

  options.programs.dormer.queue = {
    enable = lib.mkEnableOption "pushing of everything that this machine builds";

    endpoint = mkOption {
      type = types.strMatching "https?://.+";
      example = "https://cache.example.org/";
      description = "Address of the server.";
    };

    tokenFile = mkOption {
      type = types.path;
      description = "File with a token that may pull from the caches and push to them.";
    };

    caches = mkOption {
      type = types.nonEmptyListOf (types.strMatching "[A-Za-z0-9][A-Za-z0-9_+-]*");
      example = [ "main" ];
      description = "The caches that get the builds.";
    };

    noticedBy = mkOption {
      type = types.enum [
        "hook"
        "store"
      ];
      default = "hook";
      description = ''
        How builds are noticed: by Nix's post-build hook, or by new paths in the store, which include
        those that nobody built here.
      '';
    };

    exclude = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "*-source" ];
      description = "Patterns of the names of store paths that stay here.";
    };

    excludeLarger = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "2G";
      description = "Larger archives stay here.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        # The type says it; this looks at the value, wherever it is used.
        assertion = cfg.caches != [ ];
        message = "programs.dormer.queue.caches names no cache.";
      }
      {
        assertion = !lib.hasPrefix builtins.storeDir (toString cfg.tokenFile);
        message = "programs.dormer.queue.tokenFile is in the Nix store, which every user can read.";
      }
      {
        assertion = lib.hasPrefix "https://" cfg.endpoint || lib.hasPrefix "http://127." cfg.endpoint;
        message = "programs.dormer.queue.endpoint: the token would travel without TLS.";
      }
    ];

    environment.systemPackages = [ package ];

    nix.settings = lib.optionalAttrs (cfg.noticedBy == "hook") { post-build-hook = "${hook}"; };

    users.users.dormer-queue = {
      isSystemUser = true;
      group = "dormer-queue";
      home = folder;
    };
    users.groups.dormer-queue = { };

    systemd.services.dormer-queue = {
      description = "Pushes what Nix has built (Dormer's queue)";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nix-daemon.socket"
      ];
      environment = {
        DORMER_QUEUE_DIR = folder;
        HOME = folder;
        NIX_REMOTE = "daemon";
        XDG_CONFIG_HOME = "${settingsFolder}";
      };
      serviceConfig =
        import ./unit.nix {
          inherit lib;
          cfg = {
            user = "dormer-queue";
            group = "dormer-queue";
            environmentFile = null;
            credentials.token = cfg.tokenFile;
          };
        }
        // {
          StateDirectory = "dormer-queue";
          RuntimeDirectory = "dormer-queue";
          WorkingDirectory = folder;
          ExecStart = lib.escapeShellArgs (
            [ (lib.getExe package) ]
            ++ (
              if cfg.noticedBy == "store" then
                [ "watch" ] ++ caches
              else
                [
                  "queue"
                  "drain"
                  "--watch"
                ]
            )
          );
          Restart = "always";
          RestartSec = 10;
          Nice = 10;
          # Nix's own program runs here, which sets its limits and gets over a refusal.
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
          SystemCallErrorNumber = "EPERM";
        };
    };
  };
}
