import { z } from 'zod';
import type { ToolListing } from './sdk.ts';
import type { Tool } from './tool.ts';

/**
 * What clients see of the tools, made from their schemas. It is the same for everybody, and making it takes longer than the
 * rest of a start: scripts/build.mjs runs this once and puts the finished list in its place.
 */
export async function toolList(): Promise<readonly ToolListing[]> {
  const { TOOLS } = await import('./tools.ts');
  return TOOLS.map(listing);
}

/** As a client sees one. */
export function listing(tool: Tool): ToolListing {
  const { name, title, description, annotations } = tool;
  return {
    name,
    title,
    description,
    annotations: { title, ...annotations },
    inputSchema: objectSchema(tool.input),
    ...(tool.output !== undefined && { outputSchema: outline(objectSchema(tool.output)) }),
  };
}

/** The dialect is MCP's default, and the size is paid by every conversation, so `$schema` is left out. */
function objectSchema(schema: z.ZodObject): ToolListing['inputSchema'] {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io: 'input' });
  return { ...json, type: 'object' } as ToolListing['inputSchema']; // zod types JSON Schema wider than the SDK does
}

/** Only the top level of an answer is published: what is inside explains itself there, and would triple the list. */
function outline(schema: ToolListing['inputSchema']): ToolListing['inputSchema'] {
  const properties = Object.entries(schema.properties ?? {}).map(([name, property]) => [name, withoutInside(property)]);
  return { ...schema, properties: Object.fromEntries(properties) as Record<string, object> }; // fromEntries of a tuple is `any` by its own types
}

function withoutInside(property: object): object {
  if (!('type' in property)) return property;
  if (property.type === 'array') return { type: 'array' };
  return property.type === 'object' ? { type: 'object' } : property;
}
