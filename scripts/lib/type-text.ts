import { z } from 'zod';
import {
  ForeignProcess,
  GpuStatus,
  HostSnapshot,
  ModelStatus,
  OfferedWork,
  SlotStatus,
} from '../../shared/host-snapshot.ts';
import {
  EditRequest,
  GenerateRequest,
  Guidance,
  Job,
  JobError,
  JobRequest,
  JobResult,
  Sha256,
} from '../../shared/job.ts';
import { ModelProfile } from '../../shared/model-profile.ts';
import { AgentJob, ModelMove, OfferLine, VramChange } from '../../shared/protocol.ts';
import { ServiceTime } from '../../shared/service-time.ts';

/** Schemas that are shown by name, in the order in which they are explained. */
export const NAMED_TYPES = new Map<z.core.$ZodType, string>([
  [Job, 'Job'],
  [JobRequest, 'JobRequest'],
  [GenerateRequest, 'GenerateRequest'],
  [EditRequest, 'EditRequest'],
  [Guidance, 'Guidance'],
  [JobResult, 'JobResult'],
  [JobError, 'JobError'],
  [AgentJob, 'AgentJob'],
  [OfferLine, 'OfferLine'],
  [ModelMove, 'ModelMove'],
  [VramChange, 'VramChange'],
  [HostSnapshot, 'HostSnapshot'],
  [GpuStatus, 'GpuStatus'],
  [ForeignProcess, 'ForeignProcess'],
  [ModelStatus, 'ModelStatus'],
  [SlotStatus, 'SlotStatus'],
  [ServiceTime, 'ServiceTime'],
  [OfferedWork, 'OfferedWork'],
  [ModelProfile, 'ModelProfile'],
]);

/** A schema as a TypeScript type: the whole of a named one at the top, its name below. */
export function typeText(schema: z.core.$ZodType, show: 'whole' | 'name'): string {
  const name = NAMED_TYPES.get(schema);
  if (name !== undefined && show === 'name') return name;
  if (schema === Sha256) return 'sha256';
  if (schema instanceof z.ZodObject) return objectText(schema);
  if (schema instanceof z.ZodArray) return `${bracketed(typeText(schema.element, 'name'))}[]`;
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodCatch) return typeText(schema.unwrap(), 'name');
  if (schema instanceof z.ZodNullable) return `${typeText(schema.unwrap(), 'name')} | null`;
  if (schema instanceof z.ZodUnion) return schema.options.map((option) => typeText(option, 'name')).join(' | ');
  if (schema instanceof z.ZodEnum) return schema.options.map((value) => `'${value}'`).join(' | ');
  if (schema instanceof z.ZodLiteral) return [...schema.values].map((value) => JSON.stringify(value)).join(' | ');
  if (schema instanceof z.ZodRecord) return `Record<string, ${typeText(schema.valueType, 'name')}>`;
  if (schema instanceof z.ZodTuple) return `[${schema.def.items.map((item) => typeText(item, 'name')).join(', ')}]`;
  if (schema instanceof z.ZodStringFormat) return 'uuid';
  if (schema instanceof z.ZodNumberFormat) return 'int';
  if (schema instanceof z.ZodString) return 'string';
  if (schema instanceof z.ZodNumber) return 'number';
  if (schema instanceof z.ZodBoolean) return 'boolean';
  throw new Error(
    `The protocol uses a kind of schema that scripts/lib/type-text.ts cannot show: ${schema._zod.def.type}`,
  );
}

function objectText(schema: z.ZodObject): string {
  const fields = Object.entries<z.core.$ZodType>(schema.shape);
  if (isPartOfSnapshot(schema, fields)) return 'Partial<HostSnapshot>';
  if (fields.length === 0) return '{}';
  const lines = fields.map(
    ([key, field]) => `${key}${field instanceof z.ZodOptional ? '?' : ''}: ${typeText(field, 'name')}`,
  );
  return `{ ${lines.join('; ')} }`;
}

function isPartOfSnapshot(schema: z.ZodObject, fields: [string, z.core.$ZodType][]): boolean {
  return (
    schema !== HostSnapshot &&
    fields.length > 0 &&
    fields.every(([key, field]) => Object.hasOwn(HostSnapshot.shape, key) && field instanceof z.ZodOptional)
  );
}

function bracketed(text: string): string {
  return text.includes('|') ? `(${text})` : text;
}
