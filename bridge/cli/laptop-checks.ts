import type { Finding } from '../../shared/doctor.ts';
import { nodeFinding } from '../../shared/doctor.ts';

export type HostFact = {
  name: string;
  url: string;
  isPinned: boolean;
  /** Of the pinned certificate. */
  expiresInDays: number | undefined;
  link: { kind: 'up'; latencyMs: number } | { kind: 'connecting' } | { kind: 'down'; code: string; message: string };
  version: string | undefined;
  problems: readonly string[];
  models: readonly { alias: string; id: string }[];
};

/** An entry of a client's configuration that starts gantry. */
export type ClientFact = { client: string; file: string; missing: readonly string[] };

/** All that `gantry doctor` looks at; what could not be found out is undefined. */
export type LaptopFacts = {
  /** As typed behind a command of ours, so that it is about the same file: empty, or it begins with a blank. */
  flags: string;
  nodeVersion: string;
  today: string;
  ownVersion: string;
  config: {
    file: string | undefined;
    expectedFile: string;
    problems: readonly string[];
    /** The command that mends them, where there is one. */
    mend?: string | undefined;
  };
  hosts: readonly HostFact[];
  output: { directory: string; problem: string | undefined } | undefined;
  clients: readonly ClientFact[];
  /** Files of clients that are there and cannot be read as what they should be. */
  unreadable: readonly string[];
};

type Check = (facts: LaptopFacts) => Finding | Finding[];

const SLOW_MS = 500;
const SOON_DAYS = 30;

/** Every check of a laptop, in the order in which they build on each other. PURE */
export const LAPTOP_CHECKS: readonly Check[] = [
  ({ nodeVersion, today }) => nodeFinding({ version: nodeVersion, today }),
  config,
  links,
  pins,
  latency,
  versions,
  hostProblems,
  aliases,
  output,
  clients,
];

export function laptopFindings(facts: LaptopFacts): Finding[] {
  return LAPTOP_CHECKS.flatMap((check) => check(facts));
}

function config({ flags, config: { file, expectedFile, problems, mend }, hosts }: LaptopFacts): Finding[] {
  const id = 'config';
  if (problems.length > 0) {
    return problems.map((detail) => ({ id, status: 'problem', detail, hint: mend ?? `gantry config check${flags}` }));
  }
  if (hosts.length > 0) return [{ id, status: 'ok', detail: file ?? 'from the environment' }];
  const detail = file === undefined ? `there is no ${expectedFile}, and no host` : `${file} has no host`;
  return [
    {
      id,
      status: 'problem',
      detail,
      hint: `gantry add 'LINE'${flags}, with the line that \`gantry-agent invite\` prints on the host`,
    },
  ];
}

/** What to do for each way in which a link fails; anything else is a matter of the network. */
const HINTS: Readonly<Record<string, (host: HostFact, flags: string) => string>> = {
  AUTH_FAILED: ({ name }, flags) => `gantry remove ${name}${flags}; then gantry add with a new invite of that host`,
  /** One agent under two names. */
  INVALID_ARGUMENT: ({ name }, flags) => `gantry remove ${name}${flags}`,
  VERSION_MISMATCH: () => 'gantry --version; then install the same release on both sides',
};

function links({ flags, hosts }: LaptopFacts): Finding[] {
  return hosts.map((host): Finding => {
    const { name, url, link } = host;
    const id = 'link';
    if (link.kind === 'up') return { id, status: 'ok', detail: `${name}: connected, ${url}` };
    if (link.kind === 'connecting') {
      return { id, status: 'problem', detail: `${name}: no answer yet from ${url}`, hint: reaching(url) };
    }
    const hint = HINTS[link.code]?.(host, flags) ?? reaching(url);
    return { id, status: 'problem', detail: `${name}: ${link.code}: ${link.message}`, hint };
  });
}

function reaching(url: string): string {
  const [, address = '', port = ''] = /^wss?:\/\/(.+):(\d+)\/?$/.exec(url) ?? [];
  return /^(127\.|localhost|\[::1\])/.test(address)
    ? `ssh -N -L ${port}:127.0.0.1:7801 THAT-HOST, if it is reached through a tunnel; else gantry-agent status there`
    : `ping ${address.replace(/[[\]]/g, '')}; then on that host: gantry-agent doctor`;
}

function pins({ flags, hosts }: LaptopFacts): Finding[] {
  return hosts.flatMap(({ name, url, isPinned, expiresInDays }): Finding[] => {
    const id = 'pin';
    if (!url.startsWith('wss:')) return [];
    if (!isPinned) {
      const detail = `${name}: no certificate is pinned; only one that an authority signed is accepted`;
      const hint = `gantry remove ${name}${flags}; then gantry add with an invite of that host`;
      return [{ id, status: 'warning', detail, hint }];
    }
    if (expiresInDays !== undefined && expiresInDays < SOON_DAYS) {
      const detail = `${name}: its certificate ends in ${expiresInDays} days`;
      return [{ id, status: 'warning', detail, hint: `gantry-agent doctor, on ${name}` }];
    }
    return [{ id, status: 'ok', detail: `${name}: certificate pinned` }];
  });
}

function latency({ flags, hosts }: LaptopFacts): Finding[] {
  return hosts.flatMap(({ name, link }): Finding[] => {
    if (link.kind !== 'up') return [];
    const detail = `${name}: ${Math.round(link.latencyMs)} ms there and back`;
    if (link.latencyMs < SLOW_MS) return [{ id: 'latency', status: 'ok', detail }];
    return [
      { id: 'latency', status: 'warning', detail: `${detail}; previews will be slow`, hint: `gantry status${flags}` },
    ];
  });
}

function versions({ hosts, ownVersion }: LaptopFacts): Finding[] {
  return hosts.flatMap(({ name, version }): Finding[] => {
    if (version === undefined || version === ownVersion) return [];
    const detail = `${name}: release ${version} there, ${ownVersion} here`;
    return [
      { id: 'version', status: 'warning', detail, hint: `sudo install-agent.sh of release ${ownVersion}, on ${name}` },
    ];
  });
}

function hostProblems({ hosts }: LaptopFacts): Finding[] {
  return hosts.flatMap(({ name, problems, link }): Finding[] =>
    link.kind === 'up'
      ? problems.map((text) => ({
          ...{ id: 'host', status: 'warning', detail: `${name}: ${text}`, hint: `gantry-agent doctor, on ${name}` },
        }))
      : [],
  );
}

/** One name that means two models: a call that uses it goes to whichever host comes first. */
function aliases({ flags, hosts }: LaptopFacts): Finding[] {
  const all = hosts.flatMap(({ name, models }) => models.map((model) => ({ host: name, ...model })));
  const names = [...new Set(all.map(({ alias }) => alias))];
  return names.flatMap((alias): Finding[] => {
    const meant = all.filter((model) => model.alias === alias);
    if (new Set(meant.map(({ id }) => id)).size < 2) return [];
    const detail = `${alias} means ${meant.map(({ id, host }) => `${id} on ${host}`).join(' and ')}`;
    const hint = `gantry status${flags}; then rename one of them in agent.yaml there`;
    return [{ id: 'alias', status: 'warning', detail, hint }];
  });
}

function output({ output: place }: LaptopFacts): Finding {
  const id = 'output-directory';
  if (place === undefined) return { id, status: 'skipped', detail: 'the configuration cannot be used' };
  const { directory, problem } = place;
  if (problem === undefined) return { id, status: 'ok', detail: directory };
  return { id, status: 'problem', detail: problem, hint: `ls -ld ${directory}; df -h ${directory}` };
}

function clients({ clients: found, unreadable }: LaptopFacts): Finding[] {
  const id = 'client';
  const unread = unreadable.map((file): Finding => {
    return { id, status: 'warning', detail: `${file} is no valid configuration`, hint: 'gantry clients' };
  });
  if (found.length === 0) {
    const detail = 'no MCP client that is known starts gantry yet';
    return [...unread, { id, status: 'warning', detail, hint: 'gantry clients' }];
  }
  const checked = found.map(({ client, file, missing }): Finding => {
    if (missing.length === 0) return { id, status: 'ok', detail: `${client}: ${file}` };
    const detail = `${client}: ${file} names ${missing.join(', ')}, which is not there`;
    return { id, status: 'problem', detail, hint: `gantry clients ${client}` };
  });
  return [...unread, ...checked];
}
