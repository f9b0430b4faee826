# Closures for the tests: no network, no sandbox, and nothing but a static busybox, which every tree has.
# The same arguments give the same store paths in every Nix version.
{ salt
, leaves ? 0          # store paths that `farm` links to
, megabytes ? 0       # size of `noise` and `sparse`
}:
let
  build = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/busybox";
    args = [ "sh" "-euc" "b=/bin/busybox; ${script}" ];
  };
in
rec {
  # A directory with a file large enough for several chunks, an empty file and a link.
  library = build "library-${salt}" ''
    $b mkdir -p $out/lib $out/empty-folder
    echo "data of ${salt}" > $out/lib/data
    $b seq 1 120000 > $out/lib/numbers
    : > $out/lib/nothing
    $b ln -s data $out/lib/link
  '';

  # An executable that needs `library`, in a path that also refers to itself.
  tool = build "tool-${salt}" ''
    $b mkdir -p $out/bin
    printf '#!/bin/busybox sh\nexec /bin/busybox cat ${library}/lib/link\n' > $out/bin/tool
    $b chmod +x $out/bin/tool
    echo $out > $out/self
  '';

  # Store paths that are no directories: a link, an empty file, an executable file.
  link = build "link-${salt}" "$b ln -s ${tool}/bin/tool $out";
  empty = build "empty-${salt}" ": > $out";
  script = build "script-${salt}" ''
    printf '#!/bin/busybox sh\nexec ${link}\n' > $out
    $b chmod +x $out
  '';

  # A link to each of thousands of store paths, as a system profile has them: far more holes than a chunk may have.
  leaf = n: builtins.toFile "leaf-${toString n}-${salt}" "leaf ${toString n} of ${salt}\n";
  leafPaths = builtins.genList leaf leaves;
  list = builtins.toFile "list-${salt}" (builtins.concatStringsSep "" (map (path: "${path}\n") leafPaths));
  farm = build "farm-${salt}" ''
    $b mkdir $out
    while read -r path; do
      $b ln -s "$path" "$out/''${path##*/}"
    done < ${list}
  '';

  # Two outputs, the first of which needs the second.
  pair = derivation {
    name = "pair-${salt}";
    outputs = [ "out" "lib" ];
    system = builtins.currentSystem;
    builder = "/bin/busybox";
    args = [ "sh" "-euc" "b=/bin/busybox; $b mkdir $out $lib; echo ${salt} > $lib/data; $b ln -s $lib/data $out/data" ];
  };

  # Bytes that no codec and no deduplication makes smaller.
  noise = build "noise-${salt}" ''
    $b mkdir $out
    $b dd if=/dev/urandom of=$out/noise bs=1048576 count=${toString megabytes} 2>/dev/null
  '';

  # A file that is nearly all hole: large, and no work for the disk.
  sparse = build "sparse-${salt}" ''
    $b truncate -s ${toString megabytes}M $out
    echo "the end of ${salt}" >> $out
  '';

  # Many small paths that differ, under one root.
  crowd = build "crowd-${salt}" ''
    $b mkdir $out
    ${builtins.concatStringsSep "\n" (builtins.genList (n: "$b ln -s ${member n} $out/${toString n}") leaves)}
  '';
  member = n: build "member-${toString n}-${salt}" ''
    $b mkdir $out
    $b dd if=/dev/urandom of=$out/noise bs=65536 count=6 2>/dev/null
    $b seq ${toString n} 20000 > $out/numbers
  '';

  # Says something while it is built.
  talker = build "talker-${salt}" ''
    echo "a word from ${salt}"
    echo ${salt} > $out
  '';

  # Two content-addressed paths, one of which needs the other: a feature that a machine has to allow.
  addressed = name: script: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/busybox";
    args = [ "sh" "-euc" "b=/bin/busybox; ${script}" ];
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
  floating = addressed "floating-${salt}" "echo ${salt} > $out";
  floater = addressed "floater-${salt}" "$b mkdir $out; $b ln -s ${floating} $out/floating; echo ${salt}";

  all = build "all-${salt}" ''
    $b mkdir $out
    $b ln -s ${tool} $out/tool
    $b ln -s ${link} $out/link
    $b ln -s ${empty} $out/empty
    $b ln -s ${script} $out/script
  '';
}
