import { dirname, isAbsolute, join } from 'node:path';
import { ConfigError } from '../shared/config-file.ts';
import type { HostSnapshot } from '../shared/host-snapshot.ts';
import { reachOf } from '../shared/addresses.ts';
import { typedFlags } from '../shared/typed.ts';
import { fingerprintIn } from './certificate.ts';
import { HostClient } from './cli/host-client.ts';
import type { AgentConfig, AgentFlags } from './config.ts';
import { configPath, loadAgentConfig, searchSettings } from './config.ts';
import type { ConfiguredModel } from './configured-model.ts';
import type { ServiceUser } from './doctor/gather.ts';
import {
  mayUse,
  packagesBeside,
  readDriver,
  readOrphans,
  readPlace,
  readPortHolder,
  readProcesses,
  readShmMiB,
  readTokens,
  readUnit,
  readUser,
} from './doctor/gather.ts';
import type { HostFacts, ModelFact } from './doctor/host-facts.ts';
import { findPrograms } from './doctor/search.ts';
import { commandSocketPath, unitDirectory } from './group-socket.ts';
import { AGENT_VERSION } from './status.ts';

/** Everything the doctor of a host looks at, gathered once. Each part that cannot be read says so and hides no other. */
export async function hostFacts(flags: AgentFlags): Promise<HostFacts> {
  const { config, problems } = await tryConfig(flags);
  const { path, nvidiaSmi } = searchSettings();
  const unit = await readUnit();
  const user = await readUser(unit?.user ?? 'gantry');
  const agent = await askAgent(config?.stateDir ?? '/var/lib/gantry');
  const smi = config?.gpu.nvidiaSmi ?? nvidiaSmi;
  const { pid, ...answer } = agent;
  const stateDir = config?.stateDir ?? '/var/lib/gantry';
  return {
    flags: typedFlags({ config: flags.config, 'state-dir': flags.stateDir }, process.platform),
    node: { version: process.versions.node, path: process.execPath },
    today: new Date().toISOString().slice(0, 10),
    config: {
      path: configPath(flags),
      problems,
      warnings: config?.warnings ?? [],
      listen: config && {
        ...config.listen,
        isLoopback: reachOf(config.listen.host) === 'loopback',
        isEncrypted: config.tls,
      },
    },
    ...(await readDriver(smi)),
    processes: 'snapshot' in answer ? foreignIn(answer.snapshot) : await readProcesses(smi),
    models: (config?.models ?? []).map((model) => modelFact(model, { path, user })),
    places: await Promise.all([
      readPlace({ what: 'state', path: stateDir }, user),
      readPlace({ what: 'logs', path: config?.logDir ?? join(stateDir, 'logs') }, user),
      readPlace({ what: 'cache', path: unitDirectory(stateDir, 'cache') ?? stateDir }, user),
    ]),
    portHolder: config && readPortHolder(config.listen.port, pid),
    certificate: await tryCertificate(stateDir),
    tokens: readTokens(stateDir),
    unit,
    agent: answer,
    ownVersion: AGENT_VERSION,
    orphans: 'snapshot' in answer ? [] : readOrphans(config?.logDir ?? join(stateDir, 'logs')),
    shmMiB: await readShmMiB(),
  };
}

async function tryConfig(flags: AgentFlags): Promise<{ config: AgentConfig | undefined; problems: readonly string[] }> {
  try {
    return { config: await loadAgentConfig(flags), problems: [] };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return { config: undefined, problems: error.problems };
  }
}

async function askAgent(stateDir: string): Promise<HostFacts['agent'] & { pid: number | undefined }> {
  try {
    using client = await HostClient.connect(commandSocketPath(stateDir));
    const { snapshot } = await client.ask('host.snapshot', {});
    return { version: snapshot.agentVersion, snapshot, pid: client.pid };
  } catch (error) {
    return { problem: error instanceof Error ? error.message : String(error), pid: undefined };
  }
}

async function tryCertificate(stateDir: string): Promise<HostFacts['certificate']> {
  try {
    const fingerprint = await fingerprintIn(stateDir);
    return fingerprint === undefined ? undefined : { fingerprint };
  } catch (error) {
    return { problem: error instanceof Error ? error.message : String(error) };
  }
}

function modelFact(
  { alias, engine, launch }: ConfiguredModel,
  o: { path: string; user: ServiceUser | undefined },
): ModelFact {
  if (launch.kind === 'attached') {
    return {
      alias,
      engine,
      program: undefined,
      cwd: undefined,
      attach: launch.url,
      packages: {},
      trustsRemoteCode: false,
    };
  }
  const [program = ''] = launch.command;
  const found = programAt(program, { ...o, cwd: launch.cwd });
  const isUsersToRun = found === undefined || o.user === undefined ? undefined : mayUse(found, o.user, 0o1);
  return {
    alias,
    engine,
    program: { path: program, found, isUsersToRun },
    cwd: launch.cwd,
    attach: undefined,
    packages: found === undefined ? {} : packagesBeside(found),
    trustsRemoteCode: [...launch.command, ...launch.args].some((word) => /^--trust[-_]remote[-_]code$/.test(word)),
  };
}

/** As the agent will find it: by its path, or on the PATH. */
function programAt(program: string, { path, cwd }: { path: string; cwd: string | undefined }): string | undefined {
  if (!program.includes('/')) return findPrograms(program, { path, root: '/nowhere' })[0];
  const at = isAbsolute(program) ? program : join(cwd ?? process.cwd(), program);
  return findPrograms(at.slice(dirname(at).length + 1), { path: dirname(at), root: '/nowhere' })[0];
}

/** The agent tells its own servers from the programs of others. */
function foreignIn({ gpus }: HostSnapshot): HostFacts['processes'] {
  return gpus.flatMap(({ foreign }) => foreign.map(({ pid, name, usedMiB }) => ({ pid, name, usedMiB })));
}
