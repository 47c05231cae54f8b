import manifest from '../package.json' with { type: 'json' };

/** The release, as hosts, clients and people see it. */
export const packageVersion: string = manifest.version;
