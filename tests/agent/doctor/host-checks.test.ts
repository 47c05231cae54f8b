import { describe, expect, test } from 'vitest';
import { HOST_CHECKS, hostFindings } from '../../../agent/doctor/host-checks.ts';
import type { HostFacts, ModelFact, UnitFact } from '../../../agent/doctor/host-facts.ts';
import type { FindingStatus } from '../../../shared/doctor.ts';
import type { HostSnapshot } from '../../../shared/host-snapshot.ts';

const VLLM = '/opt/vllm/bin/vllm';
const MODEL: ModelFact = {
  alias: 'qwen',
  engine: 'vllm-omni',
  program: { path: VLLM, found: VLLM, isUsersToRun: true },
  cwd: undefined,
  attach: undefined,
  packages: { vllm: '0.14.1', transformers: '5.3.0', torch: '2.9.0+cu128' },
  trustsRemoteCode: false,
};
const UNIT: UnitFact = {
  ...{ activeState: 'active', isEnabled: true, result: 'success', restarts: 0, user: 'gantry' },
  ...{ hidesHomes: true, openPaths: [], writablePaths: [] },
};
const LISTEN = { host: '10.0.0.5', port: 7801, isLoopback: false, isEncrypted: true };
const PLACE = { exists: true, freeMiB: 500_000, isUsersToWrite: true };

/** A host on which everything is as it should be. */
const GOOD: HostFacts = {
  flags: '',
  node: { version: '24.1.0', path: '/usr/bin/node' },
  today: '2026-11-21',
  config: { path: '/etc/gantry/agent.yaml', problems: [], warnings: [], listen: LISTEN },
  driver: { version: '570.1', cuda: '12.8', answerMs: 40 },
  gpus: [{ index: 0, name: 'L4', isPersistent: true }],
  processes: [],
  models: [MODEL],
  places: [
    { what: 'state', path: '/var/lib/gantry', ...PLACE },
    { what: 'cache', path: '/var/cache/gantry', ...PLACE },
  ],
  portHolder: undefined,
  certificate: { fingerprint: 'sha256:abc' },
  tokens: { count: 1, path: '/var/lib/gantry/tokens.json', mode: 0o600 },
  unit: UNIT,
  agent: { version: '0.1.0', snapshot: { problems: [] } as unknown as HostSnapshot }, // all that is looked at
  ownVersion: '0.1.0',
  orphans: [],
  shmMiB: 16_000,
};

const model = (change: Partial<ModelFact>): Partial<HostFacts> => ({ models: [{ ...MODEL, ...change }] });
const place = (change: Partial<HostFacts['places'][number]>): Partial<HostFacts> => ({
  places: [{ what: 'cache', path: '/var/cache/gantry', ...PLACE, ...change }],
});
const unit = (change: Partial<typeof UNIT>): Partial<HostFacts> => ({ unit: { ...UNIT, ...change } });
const listen = (change: Partial<typeof LISTEN>): Partial<HostFacts> => ({
  config: { ...GOOD.config, listen: { ...LISTEN, ...change } },
});
const AT_HOME = '/home/anna/venv/bin/vllm';

const ROWS: [what: string, change: Partial<HostFacts>, id: string, status: FindingStatus, words: RegExp][] = [
  ['a node that is too old', { node: { version: '18.20.4', path: '/n' } }, 'node', 'problem', /20\.19 is needed/],
  ['a node without updates', { node: { version: '20.20.2', path: '/n' } }, 'node', 'warning', /since 2026-04-30/],
  ['an odd node', { node: { version: '23.1.0', path: '/n' } }, 'node', 'warning', /no security updates/],
  [
    'a node in a home directory',
    { node: { version: '24.1.0', path: '/home/anna/.nvm/node' } },
    'node-place',
    'problem',
    /does not see/,
  ],
  [
    'a mistake in agent.yaml',
    { config: { ...GOOD.config, problems: ['modles: unknown key'] } },
    'config',
    'problem',
    /modles/,
  ],
  ['a warning of it', { config: { ...GOOD.config, warnings: ['no revision'] } }, 'config', 'warning', /no revision/],
  ['no driver', { driver: { problem: 'nvidia-smi failed with exit code 9' } }, 'driver', 'problem', /exit code 9/],
  ['no GPU', { gpus: [] }, 'driver', 'problem', /0 GPUs/],
  [
    'a slow driver',
    { driver: { version: '570.1', cuda: '12.8', answerMs: 4_000 } },
    'driver',
    'warning',
    /took 4000 ms/,
  ],
  [
    'persistence off',
    { gpus: [{ index: 3, name: 'L4', isPersistent: false }] },
    'persistence',
    'warning',
    /off on GPU 3/,
  ],
  [
    'persistence unknown',
    { gpus: [{ index: 0, name: 'L4', isPersistent: undefined }] },
    'persistence',
    'skipped',
    /does not tell/,
  ],
  [
    'a foreign process',
    { processes: [{ pid: 77, name: 'blender', usedMiB: 900 }] },
    'gpu-processes',
    'warning',
    /blender \(pid 77, 900 MiB\)/,
  ],
  [
    'no engine program',
    model({ program: { path: 'vllm', found: undefined, isUsersToRun: undefined } }),
    'engine',
    'problem',
    /no program vllm/,
  ],
  [
    'an engine that is not the user’s to run',
    model({ program: { path: VLLM, found: VLLM, isUsersToRun: false } }),
    'engine',
    'problem',
    /may not run/,
  ],
  [
    'an engine that the unit does not see',
    model({ program: { path: AT_HOME, found: AT_HOME, isUsersToRun: true } }),
    'view',
    'problem',
    /cannot see \/home\/anna/,
  ],
  [
    'a checkout that the unit may not write to',
    model({ engine: 'step1x-edit', cwd: '/opt/Step1X-Edit' }),
    'view',
    'warning',
    /may not write to \/opt\/Step1X-Edit/,
  ],
  [
    'a torch for a newer CUDA',
    model({ packages: { torch: '2.9.0+cu130' } }),
    'cuda',
    'problem',
    /built for CUDA 13\.0/,
  ],
  ['a vllm with holes', model({ packages: { vllm: '0.14.0' } }), 'engine-version', 'warning', /CVE-2026-22778/],
  [
    'a transformers with holes',
    model({ packages: { transformers: '4.57.1' } }),
    'engine-version',
    'warning',
    /CVE-2026-4372/,
  ],
  ['an engine without versions', model({ packages: {} }), 'engine-version', 'skipped', /no engine tells/],
  ['foreign code', model({ trustsRemoteCode: true }), 'remote-code', 'warning', /trust-remote-code/],
  ['a cache that is not there', place({ exists: false }), 'cache-directory', 'warning', /not there yet/],
  ['a cache of another owner', place({ isUsersToWrite: false }), 'cache-directory', 'problem', /user's to write/],
  ['little room', place({ freeMiB: 20_000 }), 'cache-directory', 'warning', /19\.5 GiB free/],
  ['no room', place({ freeMiB: 100 }), 'cache-directory', 'problem', /0\.1 GiB free/],
  ['small shared memory', { shmMiB: 64 }, 'shared-memory', 'warning', /64 MiB/],
  ['a port that somebody has', { portHolder: 'nginx (pid 5)' }, 'port', 'problem', /nginx \(pid 5\) has port 7801/],
  ['clear text on a network', listen({ isEncrypted: false }), 'reach', 'warning', /clear text/],
  ['a broken certificate', { certificate: { problem: 'it expired' } }, 'certificate', 'problem', /expired/],
  ['no certificate yet', { certificate: undefined }, 'certificate', 'warning', /first start/],
  ['tokens that others can read', { tokens: { count: 1, path: '/t', mode: 0o644 } }, 'tokens', 'problem', /mode 644/],
  ['no tokens', { tokens: { count: 0, path: '/t', mode: 0o600 } }, 'tokens', 'warning', /nobody may use/],
  ['tokens of another user', { tokens: undefined }, 'tokens', 'skipped', /run this as root/],
  ['a unit that failed', unit({ activeState: 'failed', result: 'exit-code' }), 'service', 'problem', /exit-code/],
  ['a unit that is off', unit({ activeState: 'inactive' }), 'service', 'problem', /it is inactive/],
  ['a unit that is not enabled', unit({ isEnabled: false }), 'service', 'warning', /does not start with/],
  ['a unit that was restarted', unit({ restarts: 4 }), 'service', 'warning', /restarted it 4 times/],
  ['an agent that does not answer', { agent: { problem: 'nobody listens' } }, 'agent', 'problem', /nobody listens/],
  ['an agent of another release', { ownVersion: '0.2.0' }, 'agent', 'warning', /release 0\.1\.0 runs/],
  [
    'an agent in trouble',
    { agent: { version: '0.1.0', snapshot: { problems: ['GPU 0: lost'] } as unknown as HostSnapshot } },
    'agent',
    'problem',
    /GPU 0: lost/,
  ],
  ['an orphan', { orphans: [{ pid: 9, log: '/var/log/gantry/q.log' }] }, 'left-over', 'problem', /pid 9/],
];

describe('the doctor of a host', () => {
  test('finds nothing on one that is well', () => {
    expect(hostFindings(GOOD).filter(({ status }) => status !== 'ok')).toEqual([]);
  });

  test.each(ROWS)('finds %s', (_, change, id, status, words) => {
    const found = hostFindings({ ...GOOD, ...change }).filter((finding) => finding.id === id);
    expect(found.map((finding) => finding.status)).toEqual([status]);
    expect(found[0]?.detail).toMatch(words);
    if (status !== 'skipped') expect(found[0]?.hint, 'a command').toMatch(/^\S+( \S|$)/);
  });

  test('has a row here for every check', () => {
    const failing = HOST_CHECKS.filter((check) =>
      ROWS.some(([, change]) => [check({ ...GOOD, ...change })].flat().some(({ status }) => status !== 'ok')),
    );
    expect(failing).toHaveLength(HOST_CHECKS.length);
  });

  test('says how to start the agent where there is no service', () => {
    const hintOf = (change: Partial<HostFacts>) =>
      hostFindings({ ...GOOD, ...place({ exists: false }), ...change }).find(({ id }) => id === 'cache-directory')
        ?.hint;
    expect(hintOf({})).toBe('sudo systemctl start gantry-agent');
    expect(hintOf({ unit: undefined })).toBe('gantry-agent run');
  });

  test('every command of ours is about the agent that it was run for', () => {
    const flags = " --config '/srv/my agent.yaml' --state-dir /srv/state";
    const hints = ROWS.flatMap(([, change]) => hostFindings({ ...GOOD, unit: undefined, ...change, flags }))
      .flatMap(({ hint }) => hint?.split('; ', 1) ?? [])
      .filter((hint) => hint.startsWith('gantry-agent ') && !hint.includes('config schema'));
    const commands = ['config check', 'logs qwen', 'run', 'invite', 'status'];
    expect([...new Set(hints)].sort()).toEqual(commands.map((words) => `gantry-agent ${words}${flags}`).sort());
    const local = hostFindings({ ...GOOD, ...listen({ isLoopback: true }), flags });
    expect(local.find(({ id }) => id === 'reach')?.detail).toContain(`gantry-agent listen network${flags}`);
  });

  test('prints the drop-in that opens what the unit hides, and that one alone', () => {
    const found = hostFindings({
      ...GOOD,
      ...model({ program: { path: AT_HOME, found: AT_HOME, isUsersToRun: true } }),
    });
    const { hint } = found.find(({ id }) => id === 'view') ?? {};
    expect(hint).toContain('ProtectHome=tmpfs\\nBindReadOnlyPaths=/home/anna/venv\\n');
    const opened = { ...unit({ openPaths: ['/home/anna/venv'] }) };
    const again = hostFindings({
      ...GOOD,
      ...model({ program: { path: AT_HOME, found: AT_HOME, isUsersToRun: true } }),
      ...opened,
    });
    expect(again.find(({ id }) => id === 'view')?.status).toBe('ok');
  });
});
