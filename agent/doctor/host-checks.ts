import type { Finding } from '../../shared/doctor.ts';
import { compareVersions, nodeFinding } from '../../shared/doctor.ts';
import type { HostFacts, ModelFact, PlaceFact } from './host-facts.ts';

type Check = (facts: HostFacts) => Finding | Finding[];

/** Releases before these have holes that a picture or a model file can use. */
const KNOWN_HOLES: readonly { package: string; before: string; what: string }[] = [
  { package: 'vllm', before: '0.14.1', what: 'CVE-2026-22778 and CVE-2026-22773: a hostile picture' },
  { package: 'transformers', before: '5.3.0', what: 'CVE-2026-4372, CVE-2026-5241 and CVE-2026-1839: a hostile model' },
];
const SLOW_DRIVER_MS = 3_000;
const FULL_MIB = 2_048;
const LOW_MIB: Record<PlaceFact['what'], number> = { state: 10_240, logs: 2_048, cache: 51_200 };
const SMALL_SHM_MIB = 1_024;
const DROP_IN = '/etc/systemd/system/gantry-agent.service.d/paths.conf';

/** Every check of a GPU host, in the order in which they build on each other. PURE */
export const HOST_CHECKS: readonly Check[] = [
  ({ node, today }) => nodeFinding({ version: node.version, today }),
  nodePlace,
  config,
  driver,
  persistence,
  foreign,
  programs,
  hidden,
  cuda,
  holes,
  remoteCode,
  places,
  sharedMemory,
  port,
  reach,
  certificate,
  tokens,
  unit,
  agent,
  orphans,
];

export function hostFindings(facts: HostFacts): Finding[] {
  return HOST_CHECKS.flatMap((check) => check(facts));
}

function nodePlace({ node, unit: service }: HostFacts): Finding[] {
  if (service?.hidesHomes !== true || !isInHome(node.path)) return [];
  const detail = `${node.path} is in a home directory, which the service does not see`;
  return [
    {
      id: 'node-place',
      status: 'problem',
      detail,
      hint: 'sudo /usr/local/lib/gantry/scripts/install-agent.sh --node /opt/node/bin/node',
    },
  ];
}

function config({ flags, config: { path, problems, warnings } }: HostFacts): Finding[] {
  const id = 'config';
  if (problems.length > 0) {
    return problems.map((detail) => ({ id, status: 'problem', detail, hint: `gantry-agent config check${flags}` }));
  }
  if (warnings.length === 0) return [{ id, status: 'ok', detail: path }];
  return warnings.map((detail) => ({ id, status: 'warning', detail, hint: `sudoedit ${path}` }));
}

function driver({ driver: seen, gpus }: HostFacts): Finding {
  const id = 'driver';
  if ('problem' in seen) return { id, status: 'problem', detail: seen.problem, hint: 'nvidia-smi' };
  const detail = `${seen.version}, ${gpus.length === 1 ? '1 GPU' : `${gpus.length} GPUs`}`;
  if (gpus.length === 0)
    return { id, status: 'problem', detail: `${detail}: nothing can be loaded`, hint: 'nvidia-smi -L' };
  if (seen.answerMs < SLOW_DRIVER_MS) return { id, status: 'ok', detail };
  const slow = `nvidia-smi took ${Math.round(seen.answerMs)} ms; the driver is being loaded anew each time, or in trouble`;
  return { id, status: 'warning', detail: slow, hint: 'sudo nvidia-smi -pm 1' };
}

/** Without it the driver is unloaded when nobody uses it, and each look at the GPU takes seconds. */
function persistence({ gpus }: HostFacts): Finding {
  const id = 'persistence';
  const known = gpus.filter(({ isPersistent }) => isPersistent !== undefined);
  if (known.length === 0) return { id, status: 'skipped', detail: 'nvidia-smi does not tell the persistence mode' };
  const off = known.filter(({ isPersistent }) => isPersistent === false);
  if (off.length === 0) return { id, status: 'ok', detail: 'on' };
  const detail = `off on GPU ${off.map(({ index }) => index).join(', ')}: the driver is unloaded whenever nothing uses it`;
  return { id, status: 'warning', detail, hint: 'sudo nvidia-smi -pm 1', fix: ['nvidia-smi', '-pm', '1'] };
}

function foreign({ processes }: HostFacts): Finding {
  const id = 'gpu-processes';
  if (processes === undefined) return { id, status: 'skipped', detail: 'nvidia-smi does not tell who uses the GPUs' };
  if (processes.length === 0) return { id, status: 'ok', detail: 'no others than ours' };
  const names = processes.map(({ pid, name, usedMiB }) => `${name} (pid ${pid}, ${usedMiB ?? '?'} MiB)`).join(', ');
  const [{ pid } = { pid: 0 }] = processes;
  const detail = `others use the GPUs: ${names}. gantry works around them and never ends them`;
  return { id, status: 'warning', detail, hint: `ps -o user,lstart,args -p ${pid}` };
}

function programs({ flags, models }: HostFacts): Finding[] {
  const id = 'engine';
  return models.flatMap(({ alias, program }): Finding[] => {
    if (program === undefined) return [];
    if (program.found === undefined) {
      const detail = `${alias}: there is no program ${program.path}`;
      return [
        {
          id,
          status: 'problem',
          detail,
          hint: `gantry-agent logs ${alias}${flags}; then name it by \`command\` in agent.yaml`,
        },
      ];
    }
    if (program.isUsersToRun === false) {
      const detail = `${alias}: the user of the service may not run ${program.found}`;
      return [{ id, status: 'problem', detail, hint: `namei -l ${program.found}` }];
    }
    return [{ id, status: 'ok', detail: `${alias}: ${program.found}` }];
  });
}

/** What a person sees in a shell and the service does not. The drop-in opens these directories and no other. */
function hidden({ models, unit: service, places: all }: HostFacts): Finding[] {
  if (service === undefined)
    return [{ id: 'view', status: 'skipped', detail: 'no service is installed: nothing is hidden' }];
  const used = models.flatMap(({ program, cwd }) => [program?.found, cwd].flatMap((path) => path ?? []));
  const inHomes = used.filter((path) => isInHome(path) && !isBelow(path, service.openPaths));
  const written = models.flatMap(({ engine, cwd }) => (engine === 'step1x-edit' && cwd !== undefined ? [cwd] : []));
  const places = all.map(({ path }) => path).filter((path) => !/^\/(var\/(lib|log|cache)|dev\/shm|run)\//.test(path));
  const readOnly = [...written, ...places].filter((path) => !isBelow(path, service.writablePaths));
  const isClosed = service.hidesHomes && inHomes.length > 0;
  if (!isClosed && readOnly.length === 0)
    return [{ id: 'view', status: 'ok', detail: 'the service sees all that agent.yaml names' }];
  const opened = [...new Set(inHomes.map(homeOf))];
  const lines = [
    '[Service]',
    ...(isClosed ? ['ProtectHome=tmpfs', ...opened.map((path) => `BindReadOnlyPaths=${path}`)] : []),
    ...readOnly.map((path) => `ReadWritePaths=${path}`),
  ];
  const what = [
    ...(isClosed ? [`cannot see ${inHomes.join(', ')}`] : []),
    ...(readOnly.length > 0 ? [`may not write to ${readOnly.join(', ')}`] : []),
  ];
  return [
    {
      id: 'view',
      status: isClosed ? 'problem' : 'warning',
      detail: `the service ${what.join(' and ')}`,
      hint: `printf '${lines.join('\\n')}\\n' | sudo install -D -m 644 /dev/stdin ${DROP_IN} && sudo systemctl daemon-reload && sudo systemctl restart gantry-agent`,
    },
  ];
}

/** A driver runs programs of its own CUDA major version and of older ones. */
function cuda({ driver: seen, models }: HostFacts): Finding[] {
  const id = 'cuda';
  if ('problem' in seen || seen.cuda === undefined) {
    return [{ id, status: 'skipped', detail: 'nvidia-smi does not tell the CUDA version of the driver' }];
  }
  const able = seen.cuda;
  const wanting = models.flatMap(({ alias, packages }) => {
    const wanted = cudaOf(packages['torch'] ?? '');
    return wanted === undefined ? [] : [{ alias, wanted }];
  });
  const tooNew = wanting.filter(({ wanted }) => Number(wanted.split('.')[0]) > Number(able.split('.')[0]));
  if (tooNew.length === 0) return [{ id, status: 'ok', detail: `the driver runs CUDA ${able}` }];
  return tooNew.map(({ alias, wanted }) => ({
    ...{ id, status: 'problem' as const, hint: 'nvidia-smi | head -4; then install a newer driver' },
    detail: `${alias}: its torch was built for CUDA ${wanted}, the driver runs ${able} at most`,
  }));
}

/** `2.9.0+cu128` was built for 12.8. */
function cudaOf(torch: string): string | undefined {
  const [, major, minor] = /\+cu(\d{2})(\d)/.exec(torch) ?? [];
  return major === undefined ? undefined : `${major}.${minor}`;
}

function holes({ models }: HostFacts): Finding[] {
  const id = 'engine-version';
  const seen = models.flatMap(({ alias, packages }) =>
    Object.entries(packages).map(([name, version]) => ({ alias, name, version })),
  );
  const known = seen.filter(({ name }) => KNOWN_HOLES.some((hole) => hole.package === name));
  const found = known.flatMap(({ alias, name, version }): Finding[] => {
    const hole = KNOWN_HOLES.find((each) => each.package === name);
    if (hole === undefined || compareVersions(version, hole.before) >= 0) return [];
    const detail = `${alias}: ${name} ${version} has ${hole.what}. ${hole.before} is the first without`;
    return [
      { id, status: 'warning', detail, hint: `${pipOf(models, alias)} install --upgrade '${name}>=${hole.before}'` },
    ];
  });
  if (found.length > 0) return found;
  if (known.length === 0) return [{ id, status: 'skipped', detail: 'no engine tells its version' }];
  return [{ id, status: 'ok', detail: known.map(({ name, version }) => `${name} ${version}`).join(', ') }];
}

function pipOf(models: readonly ModelFact[], alias: string): string {
  const program = models.find((model) => model.alias === alias)?.program?.found;
  return program === undefined ? 'pip' : program.replace(/[^/]+$/, 'pip');
}

function remoteCode({ flags, models }: HostFacts): Finding[] {
  return models
    .filter(({ trustsRemoteCode }) => trustsRemoteCode)
    .map(({ alias }) => ({
      ...{ id: 'remote-code', status: 'warning' as const, hint: `gantry-agent config check${flags}` },
      detail: `${alias}: --trust-remote-code runs whatever its repository says, as the user of the service`,
    }));
}

function places({ flags, places: all, unit: service }: HostFacts): Finding[] {
  // Made at the first start, by whoever starts it.
  const start = service === undefined ? `gantry-agent run${flags}` : 'sudo systemctl start gantry-agent';
  return all.map(({ what, path, exists, freeMiB, isUsersToWrite }) => {
    const id = `${what}-directory`;
    if (!exists) {
      return { id, status: 'warning', detail: `${path} is not there yet`, hint: start };
    }
    if (isUsersToWrite === false) {
      const detail = `${path} is not the service user's to write`;
      return { id, status: 'problem', detail, hint: `sudo chown -R gantry:gantry ${path}` };
    }
    if (freeMiB === undefined) return { id, status: 'skipped', detail: `${path}: its file system does not tell` };
    const free = `${path}: ${(freeMiB / 1024).toFixed(1)} GiB free`;
    if (freeMiB < FULL_MIB)
      return { id, status: 'problem', detail: free, hint: `sudo du -xh --max-depth=2 ${path} | sort -h | tail` };
    if (freeMiB < LOW_MIB[what]) return { id, status: 'warning', detail: free, hint: `df -h ${path}` };
    return { id, status: 'ok', detail: free };
  });
}

/** PyTorch's workers hand tensors over in it. */
function sharedMemory({ shmMiB }: HostFacts): Finding {
  const id = 'shared-memory';
  if (shmMiB === undefined) return { id, status: 'skipped', detail: 'there is no /dev/shm' };
  if (shmMiB >= SMALL_SHM_MIB) return { id, status: 'ok', detail: `/dev/shm has ${shmMiB} MiB` };
  const detail = `/dev/shm has ${shmMiB} MiB; engines with several workers need 1 GiB or more`;
  return { id, status: 'warning', detail, hint: 'sudo mount -o remount,size=8G /dev/shm' };
}

function port({ portHolder, config: { listen } }: HostFacts): Finding {
  const id = 'port';
  if (listen === undefined) return { id, status: 'skipped', detail: 'agent.yaml cannot be used' };
  if (portHolder === undefined) return { id, status: 'ok', detail: String(listen.port) };
  const detail = `${portHolder} has port ${listen.port}`;
  return { id, status: 'problem', detail, hint: `sudo ss -ltnp 'sport = :${listen.port}'` };
}

function reach({ flags, config: { listen } }: HostFacts): Finding {
  const id = 'reach';
  if (listen === undefined) return { id, status: 'skipped', detail: 'agent.yaml cannot be used' };
  const at = `${listen.host}:${listen.port}`;
  if (listen.isLoopback) {
    const open = `gantry-agent listen network${flags}`;
    return { id, status: 'ok', detail: `${at}: this machine only. To open it: ${open}` };
  }
  if (listen.isEncrypted) return { id, status: 'ok', detail: `${at}: the network, with TLS` };
  const detail = `${at}: the network, in clear text (tls: off); tokens and prompts can be read on the way`;
  return { id, status: 'warning', detail, hint: 'gantry-agent config schema | grep -A2 tls; then remove `tls: off`' };
}

function certificate({ flags, certificate: seen, config: { listen } }: HostFacts): Finding {
  const id = 'certificate';
  if (seen !== undefined && 'problem' in seen)
    return { id, status: 'problem', detail: seen.problem, hint: `gantry-agent invite${flags}` };
  if (listen?.isEncrypted !== true) return { id, status: 'skipped', detail: 'no TLS is needed' };
  if (seen !== undefined) return { id, status: 'ok', detail: seen.fingerprint };
  return {
    id,
    status: 'warning',
    detail: 'it is made at the first start',
    hint: 'sudo systemctl restart gantry-agent',
  };
}

function tokens({ flags, tokens: seen }: HostFacts): Finding {
  const id = 'tokens';
  if (seen === undefined) return { id, status: 'skipped', detail: 'they cannot be read: run this as root' };
  if ((seen.mode & 0o077) !== 0) {
    const fix = ['chmod', '600', seen.path];
    const detail = `${seen.path} can be read by others (mode ${seen.mode.toString(8)})`;
    return { id, status: 'problem', detail, hint: `sudo ${fix.join(' ')}`, fix };
  }
  if (seen.count === 0)
    return { id, status: 'warning', detail: 'nobody may use this host yet', hint: `gantry-agent invite${flags}` };
  return { id, status: 'ok', detail: seen.count === 1 ? '1 token' : `${seen.count} tokens` };
}

function unit({ unit: service }: HostFacts): Finding[] {
  const id = 'service';
  if (service === undefined)
    return [{ id, status: 'skipped', detail: 'gantry-agent.service is not installed; the agent is started by hand' }];
  const { activeState, isEnabled, result, restarts } = service;
  const log = 'journalctl -u gantry-agent -n 50';
  if (activeState !== 'active') {
    const why = result === 'success' ? '' : `; its last end was: ${result}`;
    const hint = result === 'success' ? 'sudo systemctl start gantry-agent' : log;
    return [{ id, status: 'problem', detail: `it is ${activeState}${why}`, hint }];
  }
  if (!isEnabled) {
    const fix = ['systemctl', 'enable', 'gantry-agent'];
    return [
      { id, status: 'warning', detail: 'it does not start with the machine', hint: `sudo ${fix.join(' ')}`, fix },
    ];
  }
  if (restarts > 0) return [{ id, status: 'warning', detail: `systemd has restarted it ${restarts} times`, hint: log }];
  return [{ id, status: 'ok', detail: 'active, and starts with the machine' }];
}

function agent({ flags, agent: seen, ownVersion, unit: service }: HostFacts): Finding[] {
  const id = 'agent';
  const status = `gantry-agent status${flags}`;
  if ('problem' in seen) {
    const isExpected = service?.activeState === 'active';
    return [{ id, status: isExpected ? 'problem' : 'skipped', detail: seen.problem, hint: status }];
  }
  if (seen.version !== ownVersion) {
    const detail = `release ${seen.version} runs, and this is ${ownVersion}`;
    return [{ id, status: 'warning', detail, hint: 'sudo systemctl restart gantry-agent' }];
  }
  const { problems } = seen.snapshot;
  if (problems.length === 0) return [{ id, status: 'ok', detail: `release ${seen.version} answers` }];
  return problems.map((detail) => ({ id, status: 'problem', detail, hint: status }));
}

/** A start of the agent ends them; while one runs there are none. */
function orphans({ orphans: left }: HostFacts): Finding {
  const id = 'left-over';
  if (left.length === 0) return { id, status: 'ok', detail: 'no server without an agent' };
  const detail = `servers that no agent owns: ${left.map(({ pid, log }) => `pid ${pid} (${log})`).join(', ')}`;
  return { id, status: 'problem', detail, hint: 'sudo systemctl restart gantry-agent' };
}

function isInHome(path: string): boolean {
  return /^\/(home|root|run\/user)\//.test(path);
}

/** The directory that a virtual environment or a checkout is. */
function homeOf(path: string): string {
  return path.replace(/\/bin\/[^/]+$/, '');
}

function isBelow(path: string, directories: readonly string[]): boolean {
  return directories.some((directory) => path === directory || path.startsWith(`${directory}/`));
}
