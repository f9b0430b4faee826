# `programs.dormer`: this machine substitutes from caches of Dormer, in the lab or at the edge.
#
# Nix takes tokens from a netrc file. A token is a secret and must not be in the Nix store, so a
# unit makes the file from the token files at each start, in memory and for root alone: the daemon
# of Nix fetches as root.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.programs.dormer;
  inherit (lib) mkOption types;

  caches = lib.attrValues cfg.caches;
  withToken = lib.filterAttrs (_: cache: cache.tokenFile != null) cfg.caches;
  hasTokens = withToken != { };
  netrc = "/run/dormer-netrc/netrc";

  # https://cache.example.org:8443/main → cache.example.org: netrc knows no ports.
  hostOf = url: lib.head (builtins.match "https?://([^/:]+).*" url);
  hosts = map (cache: hostOf cache.url) (lib.attrValues withToken);
in
{
  options.programs.dormer = {
    enable = lib.mkEnableOption "Dormer's client, and caches to substitute from";

    package = lib.mkPackageOption pkgs "dormer" { };

    caches = mkOption {
      default = { };
      description = "The caches that Nix substitutes from.";
      example = lib.literalExpression ''
        {
          main = {
            url = "https://cache.example.org/main";
            publicKeys = [ "main:kK3qGmZjtzvEwvdRgmIBvKEUQxWoKXpqwoBMpVu4JhQ=" ];
            tokenFile = "/run/secrets/dormer-token";
          };
        }
      '';
      type = types.attrsOf (
        types.submodule {
          options = {
            url = mkOption {
              type = types.strMatching "https?://[^/:]+(:[0-9]+)?/[A-Za-z0-9][A-Za-z0-9_+-]*";
              description = "Address of the cache: that of the server or edge, and the cache's name.";
            };
            publicKeys = mkOption {
              type = types.nonEmptyListOf (types.strMatching "[^: ]+:[A-Za-z0-9+/]{43}=");
              description = "The keys that sign in this cache, from `dormer cache info`.";
            };
            tokenFile = mkOption {
              type = types.nullOr types.path;
              default = null;
              description = "File with the token of a private cache.";
            };
          };
        }
      );
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.unique hosts == hosts;
        message =
          "programs.dormer.caches: netrc holds one token for a host, so only one cache of each host "
          + "may have a tokenFile. Make one token for all caches of the host.";
      }
    ]
    ++ lib.mapAttrsToList (name: cache: {
      assertion = !lib.hasPrefix builtins.storeDir (toString cache.tokenFile);
      message =
        "programs.dormer.caches.${name}.tokenFile is in the Nix store, which every user can read.";
    }) withToken
    ++ lib.mapAttrsToList (name: cache: {
      assertion = lib.hasPrefix "https://" cache.url || lib.hasPrefix "http://127." cache.url;
      message = "programs.dormer.caches.${name}: the token would travel without TLS.";
    }) withToken;

    environment.systemPackages = [ cfg.package ];

    nix.settings = {
      extra-substituters = map (cache: cache.url) caches;
      extra-trusted-public-keys = lib.unique (lib.concatMap (cache: cache.publicKeys) caches);
    }
    // lib.optionalAttrs hasTokens { netrc-file = netrc; };

    systemd.services.dormer-netrc = lib.mkIf hasTokens {
      description = "Tokens of Nix for Dormer's caches";
      wantedBy = [ "multi-user.target" ];
      before = [ "nix-daemon.service" ];
      # A line for each host. The token stands in no command line, which others could read.
      script = ''
        set -eu
        umask 077
        new=$RUNTIME_DIRECTORY/netrc.new
        : >"$new"
      ''
      + lib.concatStrings (
        lib.mapAttrsToList (name: cache: ''
          read -r token <"$CREDENTIALS_DIRECTORY"/${lib.escapeShellArg name} || [ -n "$token" ]
          printf 'machine %s login dormer password %s\n' ${lib.escapeShellArg (hostOf cache.url)} "$token" >>"$new"
        '') withToken
      )
      + ''
        mv "$new" "$RUNTIME_DIRECTORY/netrc"
      '';
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        RuntimeDirectory = "dormer-netrc";
        RuntimeDirectoryMode = "0700";
        LoadCredential = lib.mapAttrsToList (name: cache: "${name}:${cache.tokenFile}") withToken;
        UMask = "0077";
        CapabilityBoundingSet = "";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateNetwork = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RestrictAddressFamilies = "none";
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
      };
    };
  };
}
