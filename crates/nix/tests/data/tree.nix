let
  sh = script: name: derivation { inherit name; system = builtins.currentSystem; builder = "/bin/bash-static"; args = [ "-c" script ]; };
  coreutils = "PATH=/usr/bin:/bin";
  leaf = sh ''${coreutils}; mkdir -p $out/bin $out/empty "$out/sp ace" $out/deep/a/b/c; printf 'hi\n' > $out/bin/hello; chmod +x $out/bin/hello; : > $out/nothing; ln -s bin/hello $out/link; ln -s /does/not/exist $out/dangling; printf 12345678 > $out/eight; printf 1234567 > $out/seven; printf 123456789 > $out/nine; printf x > "$out/sp ace/quo\"te"; printf y > "$out/sp ace/back\\slash"; printf z > $out/deep/a/b/c/z; printf u > $out/ünïcödé; printf A > $out/A; printf c > $out/$'tab\there'; printf d > $out/$'del\x7f'; printf n > $out/$'nl\nx' '' "leaf";
  single = sh ''${coreutils}; printf 'just a file' > $out; chmod +x $out; :'' "single";
  empty = sh ''${coreutils}; : > $out; :'' "empty-file";
  symlink = sh ''${coreutils}; ln -s ${single} $out; :'' "symlink";
  with-references = sh ''${coreutils}; mkdir $out; echo ${leaf} ${single} ${symlink} $out > $out/refs'' "with-references-1.0";
in { inherit leaf single empty symlink with-references; }
