import type { HostView } from '../fleet/host-view.ts';
import type { Fleet } from '../fleet/fleet.ts';

/** How long the links may take; a host that is not there by then is shown as such. */
const SETTLE_MS = 5_000;

export type StatusOptions = { isJson: boolean; columns: number | undefined; write: (text: string) => void };

/** One screen: hosts, their GPUs with VRAM, their models with state. True if a host is connected. */
export async function printStatus(fleet: Fleet, { isJson, columns, write }: StatusOptions): Promise<boolean> {
  await fleet.settled({ signal: AbortSignal.timeout(2 * SETTLE_MS), withinMs: SETTLE_MS });
  const hosts = fleet.hosts();
  if (isJson) write(`${JSON.stringify({ schema: 1, hosts: hosts.map(hostJson) }, null, 2)}\n`);
  else
    write(
      `${statusLines(hosts)
        .map((line) => clip(line, columns))
        .join('\n')}\n`,
    );
  return hosts.some(({ link }) => link.kind === 'up');
}

/** The lines of the screen, uncut. */
export function statusLines(hosts: readonly HostView[]): string[] {
  if (hosts.length === 0) return ['No host is configured. Add one under `hosts` in bridge.yaml.'];
  return hosts.flatMap((host) => [hostLine(host), ...gpuLines(host), ...modelLines(host)]);
}

function hostLine({ name, url, link, snapshot }: HostView): string {
  const simulated = snapshot?.isSimulated === true ? ', simulated' : '';
  const draining = snapshot?.isDraining === true ? ', draining' : '';
  switch (link.kind) {
    case 'up':
      return `${name}  ${url}  connected, ${link.latencyMs.toFixed(1)} ms${simulated}${draining}`;
    case 'connecting':
      return `${name}  ${url}  connecting`;
    case 'down':
      return `${name}  ${url}  ${link.error.code}: ${link.error.message}`;
  }
}

function gpuLines({ snapshot }: HostView): string[] {
  return (snapshot?.gpus ?? []).map((gpu) => {
    const others = gpu.foreign.reduce((sum, { usedMiB }) => sum + usedMiB, 0);
    const free = gpu.freeMiB === null ? '?' : gib(gpu.freeMiB);
    const total = gpu.totalMiB === null ? '?' : gib(gpu.totalMiB);
    const health = gpu.health === 'ok' ? '' : `  ${gpu.health}`;
    return `  GPU ${gpu.index}  ${gpu.name}  ours ${gib(gpu.oursMiB)}, others ${gib(others)}, free ${free} of ${total} GiB${health}`;
  });
}

function modelLines({ snapshot }: HostView): string[] {
  return (snapshot?.models ?? []).map((model) => {
    const running = model.slots.filter(({ phase }) => phase === 'running').length;
    const jobs = running === 0 ? '' : `, ${running} running`;
    const detail = model.detail === undefined ? '' : `  ${model.detail}`;
    return `  ${model.alias}  ${model.model}  ${model.state}${jobs}  ${gib(model.heldMiB)} GiB${detail}`;
  });
}

function hostJson({ name, url, link, snapshot, statusAgeMs }: HostView) {
  return {
    name,
    url,
    link: link.kind,
    ...(link.kind === 'up' && { latencyMs: link.latencyMs }),
    ...(link.kind === 'down' && { error: { code: link.error.code, message: link.error.message } }),
    ...(snapshot !== undefined && { statusAgeMs, snapshot }),
  };
}

function gib(mib: number): string {
  return (mib / 1024).toFixed(1);
}

/** Control characters of a host's text must not move the terminal's cursor; a line must not wrap. */
function clip(line: string, columns: number | undefined): string {
  const clean = line.replace(/\p{Cc}/gu, ' ');
  return columns === undefined || clean.length <= columns ? clean : `${clean.slice(0, columns - 1)}…`;
}
