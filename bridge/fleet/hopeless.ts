import { AppError } from '../../shared/errors.ts';
import type { JobClass, JobRequest } from '../../shared/job.ts';
import type { BatchOrder } from './batch-order.ts';
import { capableHost, isUnnamed, sizeOf } from './host-forecast.ts';
import type { HostView } from './host-view.ts';
import { expectedFinishes, refusalText } from './placement.ts';

/**
 * PURE. Why these jobs are refused at once: every host is known, and none can ever run one of them, or the one host that they
 * are for drains, which only a person ends. Where some of them can run, those do, and the others fail by `whyNeverFits`.
 */
export function whyHopeless(order: BatchOrder, hosts: readonly HostView[]): AppError | undefined {
  if (hosts.length === 0) {
    return new AppError(
      'NO_HOST',
      'No host is configured. Run `gantry-agent invite` on a GPU host and type the line it prints on this machine; then start the bridge again.',
    );
  }
  const views = hosts.filter(({ name }) => order.host === undefined || name === order.host);
  if (!views.every(isKnown)) return undefined;
  if (order.host !== undefined && views.some(isDraining)) return draining(order.host, hosts);
  const requests = new Map(order.jobs.map(({ request }) => [keyOf(request), request]));
  const errors = [...requests.values()].map((request) => hopeless(request, { views, class: order.class }));
  return errors.every((error) => error !== undefined) ? errors[0] : undefined;
}

/**
 * PURE. Why this job, which waits, fits on no host. It fails only for what is sure: at least one connected host says that its
 * GPUs are too small for this size whoever leaves them, and no other host can ever run it.
 *
 * All else may pass, so the job waits: memory that other programs or busy models hold, a download, a failed server, a host
 * that drains, a GPU that is stale, unreadable, lost or degraded, an agent that sees no GPU at all. So does a host that is not
 * connected, as long as what it last said of itself does not rule it out. Of one that was never heard nothing is known: work
 * of a batch waits for it, and somebody who waits for a single image is told.
 */
export function whyNeverFits(
  request: JobRequest,
  o: { hosts: readonly HostView[]; only: string | undefined; class: JobClass },
): AppError | undefined {
  const views = o.hosts.filter(({ name }) => o.only === undefined || name === o.only);
  const heard = views.filter(({ snapshot }) => snapshot !== undefined);
  if (heard.length < views.length && (o.class === 'batch' || views.some(isConnecting))) return undefined;
  if (!heard.every((view) => mayNever(view, request))) return undefined;
  if (!heard.some((view) => view.link.kind === 'up' && isTooSmall(view, request))) return undefined;
  const { refused } = expectedFinishes(request, { hosts: views, class: o.class });
  return noHost(request, refused);
}

function hopeless(
  request: JobRequest,
  { views, class: jobClass }: { views: readonly HostView[]; class: JobClass },
): AppError | undefined {
  const { ranked, refused } = expectedFinishes(request, { hosts: views, class: jobClass });
  if (ranked.length > 0 || !refused.every(({ isForever }) => isForever)) return undefined;
  const { model } = request;
  const found = views.flatMap(({ snapshot }) => snapshot?.models.filter((one) => one.model === model) ?? []);
  if (found.length === 0) return unknownModel(model, views);
  if (!found.every(isUnnamed)) return noHost(request, refused);
  const hint = 'Ask again when it answers; server_health shows that.';
  return new AppError('NO_HOST', `${refusalText(model, refused)} ${hint}`);
}

/** By what it last said, also where it cannot be heard now. */
function mayNever(view: HostView, request: JobRequest): boolean {
  if (view.snapshot?.gpus.length === 0) return false; // nvidia-smi may be mended
  const { model, kind } = request;
  const heard: HostView = { ...view, link: { kind: 'up', latencyMs: 0 } };
  const found = capableHost(heard, { model, kind, class: 'interactive', size: sizeOf(request) });
  return 'reason' in found && found.isForever;
}

/** The model is there, and could work there at another size or on larger GPUs. */
function isTooSmall(view: HostView, { model, kind }: JobRequest): boolean {
  const status = view.snapshot?.models.find((one) => one.model === model);
  return status?.profile.capabilities.includes(kind) === true;
}

function noHost(request: JobRequest, refused: Parameters<typeof refusalText>[1]): AppError {
  const hint = 'Ask for a smaller picture, use another model, or a host with a larger GPU; list_models shows both.';
  return new AppError('NO_HOST', `${refusalText(request.model, refused)} ${hint}`);
}

function isKnown({ link, snapshot }: HostView): boolean {
  return link.kind === 'up' && snapshot !== undefined;
}

function isDraining({ snapshot }: HostView): boolean {
  return snapshot?.isDraining === true;
}

/** Work that began before waits for the end of it; whoever asks now can still ask otherwise. */
function draining(host: string, hosts: readonly HostView[]): AppError {
  const others = hosts.length > 1 ? ', or leave `host` out, so that another one does it' : '';
  return new AppError(
    'NO_HOST',
    `${host} is draining: it finishes its jobs and takes no new ones. Type \`gantry resume ${host}\` to end that${others}.`,
  );
}

function isConnecting({ link, snapshot }: HostView): boolean {
  return snapshot === undefined && link.kind !== 'down';
}

/** Jobs with the same key fit on the same hosts. */
export function keyOf(request: JobRequest): string {
  return `${request.model} ${request.kind} ${sizeOf(request).text}`;
}

function unknownModel(model: string, views: readonly HostView[]): AppError {
  const known = [...new Set(views.flatMap(({ snapshot }) => snapshot?.models.map((one) => one.model) ?? []))];
  const where = views.length === 1 ? `${views[0]?.name ?? 'The host'} does not have` : 'No host has';
  return new AppError(
    'MODEL_UNKNOWN',
    `${where} the model ${model}. Configured models: ${known.length === 0 ? 'none' : known.join(', ')}.`,
  );
}
