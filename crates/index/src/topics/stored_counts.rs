//! What the whole installation holds, by its counters.

use crate::sql::Sql;

/// One row for each generation of each cache: few.
pub(crate) const STORED: Sql = Sql {
    sqlite: "
        SELECT coalesce(sum(paths), 0), coalesce(sum(path_bytes), 0), coalesce(sum(nars), 0),
            coalesce(sum(nar_bytes), 0), coalesce(sum(nar_holed_bytes), 0), coalesce(sum(packs), 0),
            coalesce(sum(pack_bytes), 0), coalesce(sum(pack_raw_bytes), 0), coalesce(sum(pack_holed_bytes), 0),
            (SELECT counted_at FROM counter_state)
        FROM counters",
    postgres: "
        SELECT coalesce(sum(k.paths), 0)::bigint, coalesce(sum(k.path_bytes), 0)::bigint,
            coalesce(sum(k.nars), 0)::bigint, coalesce(sum(k.nar_bytes), 0)::bigint,
            coalesce(sum(k.nar_holed_bytes), 0)::bigint, coalesce(sum(k.packs), 0)::bigint,
            coalesce(sum(k.pack_bytes), 0)::bigint, coalesce(sum(k.pack_raw_bytes), 0)::bigint,
            coalesce(sum(k.pack_holed_bytes), 0)::bigint, (SELECT counted_at FROM counter_state)
        FROM (
            SELECT paths, path_bytes, nars, nar_bytes, nar_holed_bytes, packs, pack_bytes, pack_raw_bytes,
                pack_holed_bytes FROM counters
            UNION ALL SELECT paths, path_bytes, nars, nar_bytes, nar_holed_bytes, packs, pack_bytes,
                pack_raw_bytes, pack_holed_bytes FROM counter_changes) AS k",
};
